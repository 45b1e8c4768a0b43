//! A tensor as a header lists it.

use std::borrow::Cow;
use std::collections::HashSet;

use crate::encoding::Encoding;

use super::Flaw;
use super::json::{Defect, Json, Parsed, check_new, shown};
use super::rules::{self, Dtype, MAX_DIMENSIONS};

pub(super) struct Entry {
    /// Where its name begins in the header.
    pub(super) at: usize,
    pub(super) name: String,
    /// Slowest axis first.
    pub(super) shape: Vec<u64>,
    pub(super) encoding: Encoding,
    /// Offset of its first byte.
    pub(super) begin: u64,
    /// Offset of the byte after its last; shape and encoding need as many as there are.
    pub(super) end: u64,
}

impl Entry {
    /// Reads the value of the key `name`, which begins at `at`.
    ///
    /// Fields that the format does not have are passed over, as its own readers do.
    pub(super) fn read(json: &mut Json<'_>, at: usize, name: String) -> Parsed<Self> {
        let flawed = |flaw| Defect { at, flaw };
        rules::check_name(&name).map_err(flawed)?;
        let (mut dtype, mut shape, mut offsets) = (None, None, None);
        let mut fields = HashSet::new();
        json.object("an object that describes a tensor", |json, at, field| {
            match &*field {
                "dtype" => dtype = Some(json.string("a dtype, a string")?),
                "shape" => shape = Some(read_shape(json, &name)?),
                "data_offsets" => offsets = Some(read_offsets(json)?),
                _ => json.skip()?,
            }
            check_new("a tensor's description", &mut fields, at, field)
        })?;
        let missing = |field| {
            let tensor = name.clone();
            flawed(Flaw::MissingField { tensor, field })
        };
        let encoding = encoding(&name, dtype.ok_or_else(|| missing("dtype"))?).map_err(flawed)?;
        let shape = shape.ok_or_else(|| missing("shape"))?;
        let (begin, end) = offsets.ok_or_else(|| missing("data_offsets"))?;
        let entry = Self {
            at,
            name,
            shape,
            encoding,
            begin,
            end,
        };
        entry.check().map_err(flawed)?;
        Ok(entry)
    }

    fn check(&self) -> Result<(), Flaw> {
        let (begin, end) = (self.begin, self.end);
        let tensor = || self.name.clone();
        let needed_bytes = self.encoding.bytes_of(&self.shape).map_err(|reason| {
            let tensor = tensor();
            Flaw::Shape { tensor, reason }
        })?;
        let Some(bytes) = end.checked_sub(begin) else {
            let tensor = tensor();
            return Err(Flaw::Backwards { tensor, begin, end });
        };
        if bytes == needed_bytes {
            return Ok(());
        }
        Err(Flaw::Length {
            tensor: tensor(),
            shape: self.shape.clone(),
            encoding: self.encoding,
            needed_bytes,
            bytes,
        })
    }
}

fn read_shape(json: &mut Json<'_>, name: &str) -> Parsed<Vec<u64>> {
    let mut shape = Vec::new();
    json.array("a shape, an array", |json| {
        if shape.len() == MAX_DIMENSIONS {
            let (at, tensor) = (json.token(), name.to_owned());
            let flaw = Flaw::DimensionCount { tensor };
            return Err(Defect { at, flaw });
        }
        shape.push(json.number("a dimension")?);
        Ok(())
    })?;
    shape.shrink_to_fit();
    Ok(shape)
}

fn read_offsets(json: &mut Json<'_>) -> Parsed<(u64, u64)> {
    const EXPECTED: &str = "an array of two offsets";
    let at = json.token();
    let mut offsets = [None; 2];
    json.array(EXPECTED, |json| {
        let Some(free) = offsets.iter_mut().find(|offset| offset.is_none()) else {
            return Err(json.unexpected(EXPECTED));
        };
        *free = Some(json.number("an offset")?);
        Ok(())
    })?;
    let [Some(begin), Some(end)] = offsets else {
        let (expected, found) = (EXPECTED, Some('['));
        let flaw = Flaw::Json { expected, found };
        return Err(Defect { at, flaw });
    };
    Ok((begin, end))
}

fn encoding(name: &str, dtype: Cow<'_, str>) -> Result<Encoding, Flaw> {
    let tensor = || name.to_owned();
    match rules::dtype(&dtype) {
        Dtype::Known(encoding) => Ok(encoding),
        Dtype::SubByte => Err(Flaw::SubByteDtype {
            tensor: tensor(),
            dtype: dtype.into_owned(),
        }),
        Dtype::Unknown => Err(Flaw::UnknownDtype {
            tensor: tensor(),
            dtype: shown(&dtype),
        }),
    }
}
