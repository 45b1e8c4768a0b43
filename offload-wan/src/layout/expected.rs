//! A tensor that must be there: its name, and its shape relative to a model's widths.

use crate::variant::Size;

/// One dimension of an expected shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Extent {
    /// So many times the width of the residual stream.
    Dim(u64),
    /// The width of the residual stream over so many.
    DimOver(u64),
    /// The width of the feed-forward layer.
    Ffn,
    /// This number.
    Exactly(u64),
    /// This number in published checkpoints; any where widths are scaled.
    Published(u64),
    /// Latent channels that go in.
    In,
    /// Numbers of a patch that come out.
    Out,
    /// This number in published checkpoints, or another.
    About(u64),
}

/// A tensor that must be there.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Expected {
    pub(crate) name: &'static str,
    shape: &'static [Extent],
    /// Only the authors' own checkpoints have it: a constant that was saved with the weights.
    pub(crate) constant: bool,
}

use Extent::{About, Dim, DimOver, Exactly, Ffn, In, Out, Published};

/// The widths that shapes are relative to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Widths {
    pub(crate) dim: u64,
    pub(crate) ffn_dim: u64,
    /// `None`: whatever the checkpoint says.
    pub(crate) in_channels: Option<u64>,
    pub(crate) out_channels: Option<u64>,
    /// Whether the widths are those of a published checkpoint.
    pub(crate) published: bool,
}

impl Widths {
    pub(crate) fn of(size: Size, (in_channels, out_channels): (u64, u64)) -> Self {
        Self {
            dim: size.dim,
            ffn_dim: size.ffn_dim,
            in_channels: Some(in_channels),
            out_channels: Some(out_channels),
            published: true,
        }
    }
}

pub(super) const fn of(name: &'static str, shape: &'static [Extent]) -> Expected {
    Expected {
        name,
        shape,
        constant: false,
    }
}

pub(super) const fn constant(name: &'static str, shape: &'static [Extent]) -> Expected {
    Expected {
        name,
        shape,
        constant: true,
    }
}

/// Positions of a patch: 1 by 2 by 2.
pub(crate) const PATCH_LEN: u64 = 4;

impl Extent {
    /// What it comes to, or `None` where anything but 0 may stand.
    fn wanted(self, widths: Widths) -> Option<u64> {
        match self {
            Dim(times) => Some(widths.dim.saturating_mul(times)),
            DimOver(parts) => Some(widths.dim / parts),
            Ffn => Some(widths.ffn_dim),
            Exactly(len) => Some(len),
            Published(len) => widths.published.then_some(len),
            In => widths.in_channels,
            Out => widths.out_channels.map(|out| out.saturating_mul(PATCH_LEN)),
            About(_) => None,
        }
    }

    /// What a new checkpoint has.
    fn usual(self, widths: Widths) -> u64 {
        match self {
            Published(len) | About(len) => len,
            _ => self.wanted(widths).unwrap_or(0),
        }
    }
}

impl Expected {
    /// The shape at these widths.
    pub(crate) fn shape(&self, widths: Widths) -> Vec<u64> {
        let extents = self.shape.iter();
        extents.map(|extent| extent.usual(widths)).collect()
    }

    /// Whether `shape` is the one wanted, and if not, the shape it should have, `times` as long in its first axis.
    ///
    /// Leading dimensions of 1 do not count, because GGML drops them, and those behind may be missing. The first two
    /// axes of a convolution over space and time may be one, as tools do that know four dimensions at most.
    pub(crate) fn check(&self, shape: &[u64], widths: Widths, times: u64) -> Result<(), String> {
        let wanted: Vec<Option<u64>> = self
            .shape
            .iter()
            .map(|extent| extent.wanted(widths))
            .collect();
        if is_like(&wanted, shape) || is_like(trimmed(&wanted), shape) || is_merged(&wanted, shape)
        {
            return Ok(());
        }
        let mut text: Vec<String> = wanted
            .iter()
            .map(|len| len.map_or_else(|| "any".to_owned(), |len| len.to_string()))
            .collect();
        if let (Some(text), Some(Some(first))) = (text.first_mut(), wanted.first()) {
            *text = first.saturating_mul(times).to_string();
        }
        Err(format!("[{}]", text.join(", ")))
    }
}

/// Without the axes of length 1 at the end.
fn trimmed(wanted: &[Option<u64>]) -> &[Option<u64>] {
    let ones = wanted
        .iter()
        .rev()
        .take_while(|len| **len == Some(1))
        .count();
    &wanted[..wanted.len() - ones]
}

/// Whether the shapes agree but for leading ones.
fn is_like(wanted: &[Option<u64>], shape: &[u64]) -> bool {
    let leading = wanted.iter().take_while(|len| **len == Some(1)).count();
    let found_leading = shape.iter().take_while(|len| **len == 1).count();
    let significant = &wanted[leading..];
    // A width of 1 must not be taken for a dropped dimension.
    let excess = shape.len().saturating_sub(significant.len());
    let found = &shape[excess.min(found_leading)..];
    found.len() == significant.len()
        && significant
            .iter()
            .zip(found)
            .all(|(wanted, found)| wanted.map_or(*found > 0, |wanted| wanted == *found))
}

/// Whether `shape` is that of five dimensions with the first two as one.
fn is_merged(wanted: &[Option<u64>], shape: &[u64]) -> bool {
    let ([first, second, rest @ ..], [merged, others @ ..]) = (wanted, shape) else {
        return false;
    };
    let fits = match (first, second) {
        (Some(first), Some(second)) => first.checked_mul(*second) == Some(*merged),
        (Some(first), None) => *merged > 0 && *first > 0 && merged % first == 0,
        _ => false,
    };
    wanted.len() == 5 && fits && rest.iter().copied().eq(others.iter().map(|len| Some(*len)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const D: Extent = Dim(1);
    const ONE: Extent = Exactly(1);
    const TWO: Extent = Exactly(2);

    fn widths(dim: u64, ffn_dim: u64) -> Widths {
        Widths {
            dim,
            ffn_dim,
            in_channels: None,
            out_channels: Some(16),
            published: false,
        }
    }

    #[test]
    fn leading_ones_do_not_count() {
        let modulation = of("modulation", &[ONE, Exactly(6), D]);
        let check = |shape: &[u64]| modulation.check(shape, widths(8, 16), 1);
        assert_eq!(check(&[1, 6, 8]), Ok(()));
        assert_eq!(check(&[6, 8]), Ok(()));
        assert_eq!(check(&[1, 1, 6, 8]), Ok(()));
        for wrong in [&[2, 6, 8][..], &[6, 9], &[8], &[48], &[]] {
            assert_eq!(check(wrong), Err("[1, 6, 8]".to_owned()));
        }
        let matrix = of("q.weight", &[D, D]);
        assert_eq!(matrix.check(&[1, 1], widths(1, 1), 1), Ok(()));
        assert_eq!(
            matrix.check(&[8], widths(8, 16), 3),
            Err("[24, 8]".to_owned())
        );
    }

    #[test]
    fn ones_at_the_end_may_be_missing() {
        let bias = of("1.bias", &[ONE, Exactly(32), ONE, ONE]);
        for shape in [&[1, 32, 1, 1][..], &[32]] {
            assert_eq!(bias.check(shape, widths(8, 16), 1), Ok(()));
        }
        assert!(bias.check(&[32, 32], widths(8, 16), 1).is_err());
    }

    #[test]
    fn a_patch_embedding_may_be_merged() {
        let patch = of("patch_embedding.weight", &[D, In, ONE, TWO, TWO]);
        for shape in [&[8, 16, 1, 2, 2][..], &[128, 1, 2, 2], &[8, 48, 1, 2, 2]] {
            assert_eq!(patch.check(shape, widths(8, 16), 1), Ok(()), "{shape:?}");
        }
        for shape in [
            &[9, 16, 1, 2, 2][..],
            &[129, 1, 2, 2],
            &[128, 1, 4],
            &[8, 0, 1, 2, 2],
            &[0, 1, 2, 2],
        ] {
            assert!(patch.check(shape, widths(8, 16), 1).is_err(), "{shape:?}");
        }
        let exact = Widths {
            in_channels: Some(16),
            ..widths(8, 16)
        };
        assert!(patch.check(&[136, 1, 2, 2], exact, 1).is_err());
    }
}
