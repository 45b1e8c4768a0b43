//! The metadata of a header: scalars and strings are kept, arrays passed over.

use std::collections::HashMap;

use super::header::Header;
use super::rules::{self, MAX_ARRAY_DEPTH, MAX_DIMENSIONS, MAX_KEY_BYTES, MAX_STRING_BYTES};
use super::value::{self, Value};
use super::{ALIGNMENT_KEY, DEFAULT_ALIGNMENT, Flaw, GgufError, ORIG_SHAPE_PREFIX};

/// Bytes of an array's head: element type and length.
const ARRAY_HEAD_BYTES: u64 = 12;

pub(super) struct Metadata {
    /// Every key there is; `None` for an array.
    values: HashMap<String, Option<Value>>,
    pub(super) alignment: u32,
    /// By tensor: where the entry begins and the shape, slowest axis first.
    pub(super) orig_shapes: HashMap<String, (u64, Vec<u64>)>,
}

impl Metadata {
    pub(super) fn read(header: &mut Header, count: u64) -> Result<Self, GgufError> {
        let mut metadata = Self {
            values: HashMap::new(),
            alignment: DEFAULT_ALIGNMENT,
            orig_shapes: HashMap::new(),
        };
        for _ in 0..count {
            metadata.read_entry(header)?;
        }
        Ok(metadata)
    }

    pub(super) fn get(&self, key: &str) -> Option<&Value> {
        self.values.get(key)?.as_ref()
    }

    fn read_entry(&mut self, header: &mut Header) -> Result<(), GgufError> {
        let begin = header.position();
        let key = header.string("metadata key", MAX_KEY_BYTES)?;
        rules::check_key(&key).map_err(|flaw| header.flaw_at(begin, flaw))?;
        if self.values.contains_key(&key) {
            return Err(header.flaw_at(begin, Flaw::DuplicateKey { key }));
        }
        let type_id = header.u32("metadata type")?;
        let value = if let Some(tensor) = key.strip_prefix(ORIG_SHAPE_PREFIX) {
            let shape = read_orig_shape(header, begin, tensor, type_id)?;
            self.orig_shapes.insert(tensor.to_owned(), (begin, shape));
            None
        } else if type_id == value::ARRAY {
            skip_array(header, &key)?;
            None
        } else {
            Some(read_scalar(header, &key, type_id)?)
        };
        if key == ALIGNMENT_KEY {
            self.alignment =
                alignment(value.as_ref()).map_err(|flaw| header.flaw_at(begin, flaw))?;
        }
        self.values.insert(key, value);
        Ok(())
    }
}

fn alignment(value: Option<&Value>) -> Result<u32, Flaw> {
    match value {
        Some(&Value::U32(alignment)) => rules::check_alignment(alignment).map(|()| alignment),
        _ => Err(Flaw::AlignmentType),
    }
}

fn read_scalar(header: &mut Header, key: &str, type_id: u32) -> Result<Value, GgufError> {
    let what = "metadata value";
    let begin = header.position();
    Ok(match type_id {
        value::U8 => Value::U8(u8::from_le_bytes(header.bytes(what)?)),
        value::I8 => Value::I8(i8::from_le_bytes(header.bytes(what)?)),
        value::U16 => Value::U16(u16::from_le_bytes(header.bytes(what)?)),
        value::I16 => Value::I16(i16::from_le_bytes(header.bytes(what)?)),
        value::U32 => Value::U32(header.u32(what)?),
        value::I32 => Value::I32(i32::from_le_bytes(header.bytes(what)?)),
        value::F32 => Value::F32(f32::from_le_bytes(header.bytes(what)?)),
        value::BOOL => Value::Bool(read_bool(header, key)?),
        value::STRING => {
            let text = header.string("metadata string", MAX_STRING_BYTES)?;
            if text.contains('\0') {
                let what = "metadata string";
                let flaw = Flaw::Control {
                    what,
                    character: '\0',
                };
                return Err(header.flaw_at(begin, flaw));
            }
            Value::String(text)
        }
        value::U64 => Value::U64(header.u64(what)?),
        value::I64 => Value::I64(i64::from_le_bytes(header.bytes(what)?)),
        value::F64 => Value::F64(f64::from_le_bytes(header.bytes(what)?)),
        id => return Err(unknown_type(header, begin, key, id)),
    })
}

fn read_bool(header: &mut Header, key: &str) -> Result<bool, GgufError> {
    let begin = header.position();
    match header.bytes("metadata value")? {
        [0] => Ok(false),
        [1] => Ok(true),
        [byte] => Err(header.flaw_at(
            begin,
            Flaw::Bool {
                key: key.to_owned(),
                byte,
            },
        )),
    }
}

fn unknown_type(header: &Header, begin: u64, key: &str, id: u32) -> GgufError {
    let key = key.to_owned();
    header.flaw_at(begin, Flaw::ValueType { key, id })
}

/// Passes over an array, checking what it consists of.
fn skip_array(header: &mut Header, key: &str) -> Result<(), GgufError> {
    // Arrays yet to be read at each level of nesting, the outermost first.
    let mut pending: Vec<u64> = vec![1];
    while let Some(arrays) = pending.last_mut() {
        if *arrays == 0 {
            pending.pop();
            continue;
        }
        *arrays = arrays.saturating_sub(1);
        let begin = header.position();
        let (type_id, len) = read_array_head(header, key)?;
        match type_id {
            value::ARRAY => {
                if pending.len() >= MAX_ARRAY_DEPTH {
                    let flaw = Flaw::ArrayDepth {
                        key: key.to_owned(),
                        limit: MAX_ARRAY_DEPTH,
                    };
                    return Err(header.flaw_at(begin, flaw));
                }
                pending.push(len);
            }
            value::STRING => {
                for _ in 0..len {
                    let len = header.string_len("metadata string", MAX_STRING_BYTES)?;
                    header.skip("metadata string", len)?;
                }
            }
            value::BOOL => {
                for _ in 0..len {
                    read_bool(header, key)?;
                }
            }
            fixed => {
                let bytes = min_element_bytes(fixed).unwrap_or(0).saturating_mul(len);
                header.skip("metadata array", bytes)?;
            }
        }
    }
    Ok(())
}

/// The element type of an array, and its length, which the rest of the header can hold.
fn read_array_head(header: &mut Header, key: &str) -> Result<(u32, u64), GgufError> {
    let begin = header.position();
    let type_id = header.u32("metadata array")?;
    let min_bytes =
        min_element_bytes(type_id).ok_or_else(|| unknown_type(header, begin, key, type_id))?;
    let len = header.u64("metadata array")?;
    let room = header.room();
    if len.checked_mul(min_bytes).is_none_or(|bytes| bytes > room) {
        let key = key.to_owned();
        return Err(header.flaw_at(begin, Flaw::ArrayLength { key, len, room }));
    }
    Ok((type_id, len))
}

/// Bytes that an element of an array has at least; `None` if there is no such type.
fn min_element_bytes(type_id: u32) -> Option<u64> {
    match type_id {
        value::U8 | value::I8 | value::BOOL => Some(1),
        value::U16 | value::I16 => Some(2),
        value::U32 | value::I32 | value::F32 => Some(4),
        value::U64 | value::I64 | value::F64 | value::STRING => Some(8),
        value::ARRAY => Some(ARRAY_HEAD_BYTES),
        _ => None,
    }
}

fn read_orig_shape(
    header: &mut Header,
    begin: u64,
    tensor: &str,
    type_id: u32,
) -> Result<Vec<u64>, GgufError> {
    let refused = |header: &Header| {
        let tensor = tensor.to_owned();
        header.flaw_at(begin, Flaw::OrigShape { tensor })
    };
    if type_id != value::ARRAY {
        return Err(refused(header));
    }
    let element_type = header.u32("original shape")?;
    let len = header.u64("original shape")?;
    if element_type != value::I32 || len == 0 || len > u64::from(MAX_DIMENSIONS) {
        return Err(refused(header));
    }
    let mut shape = Vec::new();
    for _ in 0..len {
        let dim = i32::from_le_bytes(header.bytes("original shape")?);
        shape.push(u64::try_from(dim).map_err(|_| refused(header))?);
    }
    Ok(shape)
}
