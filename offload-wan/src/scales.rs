//! Gives weights of few bits the scales that lie beside them, so that they arrive as what they stand for.
//!
//! The scales stay tensors of their block: whoever takes weights as stored needs them, and so does whoever quantises
//! activations.

use offload_core::decode::{Float, Scale, decode, is_scalable};
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
        let scale = tensors.iter().find(|tensor| tensor.name() == name)?;
        let is_there = !matches!(scale.source(), Source::Described { .. });
        (is_whole && is_there && is_scalable(weight.encoding())).then_some(scale)
    };
    let applied = tensors.iter().map(|weight| match scale_of(weight) {
        Some(scale) => scaled(block, weight, scale),
        None => Ok(weight.clone()),
    });
    applied.collect()
}

fn scaled(block: &str, weight: &TensorSpec, scale: &TensorSpec) -> Result<TensorSpec, LayoutError> {
    let factors = numbers(block, scale)?;
    let rows = weight.shape().first().copied().unwrap_or(1);
    let row_len = weight.element_count().checked_div(rows).unwrap_or(0);
    let scale_for = match factors[..] {
        [factor] => Scale::tensor(factor),
        _ if factors.len() as u64 == rows && row_len > 0 => Scale::rows(factors, row_len),
        _ => {
            let findings = vec![Finding::Misshapen {
                tensor: format!("{block}.{}", scale.name()),
                shape: scale.shape().to_vec(),
                expected: format!("[] or [{rows}], as {} has rows", weight.name()),
            }];
            return Err(LayoutError::Incomplete {
                findings: Findings(findings),
            });
        }
    };
    let scaled = weight.clone().with_scale(scale_for);
    scaled.map_err(|error| unreadable(block, weight, &error))
}

/// The numbers of a scale.
fn numbers(block: &str, scale: &TensorSpec) -> Result<Vec<f32>, LayoutError> {
    let len = usize::try_from(scale.source().len()).expect("a scale fits memory");
    let mut encoded = vec![0; len];
    let read = scale.source().read(0, &mut encoded);
    read.map_err(|error| unreadable(block, scale, &error))?;
    let count = usize::try_from(scale.element_count()).expect("a scale fits memory");
    let mut decoded = vec![0; count * 4];
    let result = decode(scale.encoding(), &encoded, Float::F32, &mut decoded);
    result.map_err(|error| unreadable(block, scale, &error))?;
    let numbers = decoded.chunks_exact(4);
    Ok(numbers
        .map(|quad| f32::from_le_bytes([quad[0], quad[1], quad[2], quad[3]]))
        .collect())
}

fn unreadable(block: &str, tensor: &TensorSpec, error: &dyn std::error::Error) -> LayoutError {
    LayoutError::Unreadable {
        tensor: format!("{block}.{}", tensor.name()),
        reason: error.to_string(),
    }
}
