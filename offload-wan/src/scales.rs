//! Gives weights of few bits the scales that lie beside them, so that they arrive as what they stand for.
//!
//! The scales stay tensors of their block: whoever takes weights as stored needs them, and so does whoever quantises
//! activations.

use offload_core::decode::{Float, Scale, decode, is_scalable, is_supported};
use offload_core::source::Source;
use offload_core::swappable::TensorSpec;

use crate::findings::{Finding, Findings};
use crate::transformer::LayoutError;

/// The tensors of block `block` under canonical names, each weight with its scale.
///
/// Scales that are only described cannot be read: then weights are planned, not decoded.
pub(crate) fn applied(block: &str, tensors: &[TensorSpec]) -> Result<Vec<TensorSpec>, LayoutError> {
    let scale_of = |weight: &TensorSpec| {
        let owner = weight.name().strip_suffix("weight")?;
        let is_whole = owner.is_empty() || owner.ends_with('.');
        let name = format!("{owner}weight_scale");
        tensors
            .iter()
            .find(|tensor| is_whole && tensor.name() == name)
    };
    let applied = tensors.iter().map(|weight| match scale_of(weight) {
        Some(scale) => with_scale(weight, scale).map_err(|error| error.within(block)),
        None => Ok(weight.clone()),
    });
    applied.collect()
}

/// The weight with its scale, if it is one whose numbers are multiplied; errors speak of the tensors by their names.
pub(crate) fn with_scale(
    weight: &TensorSpec,
    scale: &TensorSpec,
) -> Result<TensorSpec, LayoutError> {
    if !is_scalable(weight.encoding()) {
        return Ok(weight.clone());
    }
    if let Some(finding) = misfit(weight, scale) {
        return Err(LayoutError::Incomplete {
            findings: Findings(vec![finding]),
        });
    }
    if matches!(scale.source(), Source::Described { .. }) {
        return Ok(weight.clone());
    }
    let factors = numbers(scale)?;
    let row_len = weight.shape().iter().skip(1).product();
    let scale_for = match (is_of_tensor(scale), &factors[..]) {
        (true, &[factor]) => Scale::tensor(factor),
        _ => Scale::rows(factors, row_len),
    };
    let scaled = weight.clone().with_scale(scale_for);
    scaled.map_err(|error| unreadable(weight, &error))
}

/// What is wrong with a scale: it has one number for the whole weight, or one for each of its rows, and they are floats.
pub(crate) fn misfit(weight: &TensorSpec, scale: &TensorSpec) -> Option<Finding> {
    let rows = weight.shape().first().copied().unwrap_or(1);
    let is_of_rows = matches!(*scale.shape(), [len] | [len, 1] if len == rows);
    let fits = is_of_tensor(scale) || is_of_rows && weight.element_count() > 0;
    if !fits {
        return Some(Finding::Misshapen {
            tensor: scale.name().to_owned(),
            shape: scale.shape().to_vec(),
            expected: format!(
                "[], [1], [{rows}] or [{rows}, 1], as {} has {rows} rows",
                weight.name()
            ),
        });
    }
    (!is_supported(scale.encoding())).then(|| Finding::Misencoded {
        tensor: scale.name().to_owned(),
        encoding: scale.encoding(),
        expected: "floats".to_owned(),
    })
}

/// Whether it is one number for a whole weight.
fn is_of_tensor(scale: &TensorSpec) -> bool {
    matches!(scale.shape(), [] | [1])
}

/// The numbers of a scale.
fn numbers(scale: &TensorSpec) -> Result<Vec<f32>, LayoutError> {
    let len = usize::try_from(scale.source().len()).expect("a scale fits memory");
    let mut encoded = vec![0; len];
    let read = scale.source().read(0, &mut encoded);
    read.map_err(|error| unreadable(scale, &error))?;
    let count = usize::try_from(scale.element_count()).expect("a scale fits memory");
    let mut decoded = vec![0; count * 4];
    let result = decode(scale.encoding(), &encoded, Float::F32, &mut decoded);
    result.map_err(|error| unreadable(scale, &error))?;
    let numbers = decoded.chunks_exact(4);
    Ok(numbers
        .map(|quad| f32::from_le_bytes([quad[0], quad[1], quad[2], quad[3]]))
        .collect())
}

impl LayoutError {
    /// The same error about a tensor of block `block`.
    fn within(self, block: &str) -> Self {
        let named = |tensor: String| format!("{block}.{tensor}");
        match self {
            Self::Unreadable { tensor, reason } => Self::Unreadable {
                tensor: named(tensor),
                reason,
            },
            Self::Incomplete { findings } => {
                let findings = findings.0.into_iter().map(|finding| match finding {
                    Finding::Misshapen {
                        tensor,
                        shape,
                        expected,
                    } => Finding::Misshapen {
                        tensor: named(tensor),
                        shape,
                        expected,
                    },
                    Finding::Misencoded {
                        tensor,
                        encoding,
                        expected,
                    } => Finding::Misencoded {
                        tensor: named(tensor),
                        encoding,
                        expected,
                    },
                    other => other,
                });
                Self::Incomplete {
                    findings: Findings(findings.collect()),
                }
            }
            other => other,
        }
    }
}

fn unreadable(tensor: &TensorSpec, error: &dyn std::error::Error) -> LayoutError {
    LayoutError::Unreadable {
        tensor: tensor.name().to_owned(),
        reason: error.to_string(),
    }
}
