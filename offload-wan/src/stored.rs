//! How a weight is stored: whether it can be decoded, and whether what lies beside it fits.

use offload_core::decode::{is_scalable, is_supported};
use offload_core::encoding::Encoding;
use offload_core::source::Source;
use offload_core::swappable::TensorSpec;
use serde::Deserialize;

use crate::detect::Scaling;
use crate::findings::Finding;
use crate::scales;

/// A tensor as the file has it, and what lies beside it if it is a weight. Parts of a stacked weight may fit what the
/// whole does not, so this is about the whole.
#[derive(Debug)]
pub(crate) struct Stored<'t> {
    tensor: &'t TensorSpec,
    /// Whether it is called `weight`.
    is_weight: bool,
    scale: Option<&'t TensorSpec>,
    /// The scale of the scales.
    second_scale: Option<&'t TensorSpec>,
    text: Option<&'t TensorSpec>,
}

impl<'t> Stored<'t> {
    /// `tensor` under its canonical name; `beside` finds another tensor of its block by canonical name.
    pub(crate) fn new(
        tensor: &'t TensorSpec,
        name: &str,
        beside: impl Fn(&str) -> Option<&'t TensorSpec>,
    ) -> Self {
        let owner = name.strip_suffix("weight");
        let owner = owner.filter(|owner| owner.is_empty() || owner.ends_with('.'));
        let leaf = |leaf: &str| beside(&format!("{}{leaf}", owner?));
        Self {
            tensor,
            is_weight: owner.is_some(),
            scale: leaf("weight_scale"),
            second_scale: leaf("weight_scale_2"),
            text: leaf("comfy_quant"),
        }
    }

    /// Whether each byte holds two numbers, which are not read: a scale of its scales says so.
    pub(crate) fn packed(&self) -> Option<Finding> {
        let is_packed = self.tensor.encoding() == Encoding::U8 && self.second_scale.is_some();
        is_packed.then(|| Finding::Packed {
            tensor: self.tensor.name().to_owned(),
            shape: self.tensor.shape().to_vec(),
        })
    }

    /// What is wrong with how it is stored: weights are what can be decoded, integers with a scale.
    pub(crate) fn misencoded(&self) -> Option<Finding> {
        let encoding = self.tensor.encoding();
        let is_int8 = self.tensor.name().ends_with(INT8);
        let expected = match encoding {
            Encoding::I8 if self.is_weight => None,
            _ if is_int8 => Some("I8, as its name says"),
            _ if is_supported(encoding) => None,
            _ => Some("floats, or a quantisation that is decoded"),
        };
        match expected {
            Some(expected) => Some(Finding::Misencoded {
                tensor: self.tensor.name().to_owned(),
                encoding,
                expected: expected.to_owned(),
            }),
            None => contradiction(self.tensor, self.text?),
        }
    }

    /// What is wrong with its scale: it is missing, or does not fit a sound weight.
    pub(crate) fn scale(&self, is_sound: bool, scaling: Option<Scaling>) -> Option<Finding> {
        if !self.is_weight || !is_scalable(self.tensor.encoding()) {
            return None;
        }
        match self.scale {
            Some(scale) if is_sound => scales::misfit(self.tensor, scale),
            None if self.is_scaled(scaling) => Some(Finding::Missing {
                tensor: self.scale_name(scaling),
            }),
            _ => None,
        }
    }

    /// Whether its numbers mean nothing without a scale: integers always, and fp8 matrices where the checkpoint has
    /// scales or its flag says so. Only matrices are scaled, so that another tensor of fp8 needs none.
    fn is_scaled(&self, scaling: Option<Scaling>) -> bool {
        let has_scales = match scaling {
            Some(Scaling::ScaledFp8 | Scaling::Mixed | Scaling::Int8) => true,
            Some(Scaling::PlainFp8) | None => false,
        };
        self.tensor.encoding() == Encoding::I8 || has_scales && self.tensor.shape().len() == 2
    }

    /// What its scale would be called in the file.
    fn scale_name(&self, scaling: Option<Scaling>) -> String {
        let weight = self.tensor.name();
        let owner = weight.strip_suffix("_int8").unwrap_or(weight);
        let owner = owner.strip_suffix("weight").unwrap_or(owner);
        match scaling {
            Some(Scaling::ScaledFp8) => format!("{owner}scale_weight"),
            _ => format!("{owner}weight_scale"),
        }
    }
}

/// How the names of weights that are 8-bit integers end.
const INT8: &str = "weight_int8";

/// The encoding of weights that a format means, by what its name begins with; what follows says what the scales are of,
/// and their shape is checked.
const FORMATS: [(&str, Encoding); 3] = [
    ("float8_e4m3fn", Encoding::F8E4M3),
    ("float8_e5m2", Encoding::F8E5M2),
    ("int8", Encoding::I8),
];

/// The part of a weight's `comfy_quant` that matters here.
#[derive(Debug, Deserialize)]
struct Quantised {
    #[serde(default)]
    format: Option<String>,
}

/// Bytes of the longest text that is read; it has a few dozen.
const MAX_TEXT_BYTES: u64 = 64 << 10;

/// What is wrong with `text`, which says how `weight` is stored: it says something else, or is not understood. One that
/// is only described cannot be read.
fn contradiction(weight: &TensorSpec, text: &TensorSpec) -> Option<Finding> {
    if matches!(text.source(), Source::Described { .. }) {
        return None;
    }
    let unclear = |reason: String| {
        Some(Finding::Unclear {
            tensor: text.name().to_owned(),
            reason,
        })
    };
    let bytes = text.source().len();
    if bytes > MAX_TEXT_BYTES {
        return unclear(format!("{bytes} bytes are too many for a format"));
    }
    let mut json = vec![0; usize::try_from(bytes).expect("a few bytes fit memory")];
    if let Err(error) = text.source().read(0, &mut json) {
        return unclear(error.to_string());
    }
    let said: Quantised = match serde_json::from_slice(&json) {
        Ok(said) => said,
        Err(error) => return unclear(format!("it is no JSON of a format: {error}")),
    };
    let format = said.format?;
    let known = FORMATS.iter().find(|(name, _)| {
        let rest = format.strip_prefix(name);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('_'))
    });
    let Some((_, encoding)) = known else {
        return unclear(format!("format {format:?} is not read"));
    };
    (weight.encoding() != *encoding).then(|| Finding::Misencoded {
        tensor: weight.name().to_owned(),
        encoding: weight.encoding(),
        expected: format!("{encoding}, as {} says", text.name()),
    })
}
