//! The members of the WAN family that are known by name, and the few numbers that tell them apart.
//!
//! Data only; [`detect`](crate::detect) compares it with a checkpoint.

use std::cmp::Ordering;
use std::fmt;

use serde::{Serialize, Serializer};

use crate::layout::{Layout, Widths};
use crate::names;

/// Checkpoints of one family hold the same modules and differ in size only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Family {
    /// WAN 2.1, text to video.
    T2v21,
    /// WAN 2.1, image to video.
    I2v21,
    /// WAN 2.1, first and last frame to video.
    Flf2v21,
    /// WAN 2.1 VACE.
    Vace21,
    /// WAN 2.1 Fun, inpainting.
    FunInp21,
    /// WAN 2.1 Fun, control.
    FunControl21,
    /// WAN 2.1 Fun, camera.
    FunCamera21,
    /// WAN 2.2, text to video, one of two experts.
    T2v22,
    /// WAN 2.2, image to video, one of two experts.
    I2v22,
    /// WAN 2.2, text and image to video.
    Ti2v22,
    /// WAN 2.2, sound to video.
    S2v22,
    /// WAN 2.2 Animate.
    Animate22,
    /// WAN 2.2 Fun, VACE, one of two experts.
    VaceFun22,
    /// WAN 2.2 Fun, inpainting, one of two experts.
    FunInp22,
    /// WAN 2.2 Fun, control, one of two experts.
    FunControl22,
    /// WAN 2.2 Fun, camera, one of two experts.
    FunCamera22,
    /// HuMo.
    Humo,
    /// SCAIL.
    Scail,
    /// SCAIL 2.
    Scail2,
    /// LongCat-Video: a transformer of its own.
    LongCat,
}

/// The module that only some families have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Marker {
    Plain,
    FirstLast,
    Vace,
    Camera,
    Sound,
    Humo,
    Animate,
    Scail,
    Scail2,
    LongCat,
}

/// Which modules a model has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Modules {
    pub(crate) marker: Marker,
    /// An image embedding, and attention to it.
    pub(crate) image: bool,
    /// A convolution of a reference image.
    pub(crate) reference: bool,
}

impl Modules {
    /// Those of that kind that have most.
    pub(crate) const fn all(marker: Marker) -> Self {
        Self {
            marker,
            image: true,
            reference: true,
        }
    }
}

/// What a family looks like in a checkpoint.
#[derive(Debug)]
pub(crate) struct FamilyEntry {
    pub(crate) family: Family,
    pub(crate) name: &'static str,
    pub(crate) marker: Marker,
    /// Whether an image embedding is there; `None` where it says nothing.
    pub(crate) image: Option<bool>,
    pub(crate) in_channels: u64,
    pub(crate) out_channels: u64,
}

const fn family(
    family: Family,
    name: &'static str,
    marker: Marker,
    image: Option<bool>,
    in_channels: u64,
    out_channels: u64,
) -> FamilyEntry {
    FamilyEntry {
        family,
        name,
        marker,
        image,
        in_channels,
        out_channels,
    }
}

/// Every family, older ones first: among several that fit, the first is reported.
#[rustfmt::skip]
pub(crate) const FAMILIES: &[FamilyEntry] = &[
    family(Family::T2v21, "wan2.1-t2v", Marker::Plain, Some(false), 16, 16),
    family(Family::I2v21, "wan2.1-i2v", Marker::Plain, Some(true), 36, 16),
    family(Family::Flf2v21, "wan2.1-flf2v", Marker::FirstLast, Some(true), 36, 16),
    family(Family::Vace21, "wan2.1-vace", Marker::Vace, None, 16, 16),
    family(Family::FunInp21, "wan2.1-fun-inp", Marker::Plain, Some(true), 36, 16),
    family(Family::FunControl21, "wan2.1-fun-control", Marker::Plain, Some(true), 48, 16),
    family(Family::FunCamera21, "wan2.1-fun-camera", Marker::Camera, Some(true), 32, 16),
    family(Family::T2v22, "wan2.2-t2v", Marker::Plain, Some(false), 16, 16),
    family(Family::I2v22, "wan2.2-i2v", Marker::Plain, Some(false), 36, 16),
    family(Family::Ti2v22, "wan2.2-ti2v", Marker::Plain, Some(false), 48, 48),
    family(Family::S2v22, "wan2.2-s2v", Marker::Sound, Some(false), 16, 16),
    family(Family::Animate22, "wan2.2-animate", Marker::Animate, Some(true), 36, 16),
    family(Family::VaceFun22, "wan2.2-vace-fun", Marker::Vace, None, 16, 16),
    family(Family::FunInp22, "wan2.2-fun-inp", Marker::Plain, Some(false), 36, 16),
    family(Family::FunControl22, "wan2.2-fun-control", Marker::Plain, Some(false), 52, 16),
    family(Family::FunCamera22, "wan2.2-fun-camera", Marker::Camera, Some(false), 36, 16),
    family(Family::Humo, "humo", Marker::Humo, Some(false), 36, 16),
    family(Family::Scail, "scail", Marker::Scail, Some(true), 20, 16),
    family(Family::Scail2, "scail2", Marker::Scail2, Some(true), 20, 16),
    family(Family::LongCat, "longcat-video", Marker::LongCat, Some(false), 16, 16),
];

impl Family {
    pub(crate) fn entry(self) -> &'static FamilyEntry {
        FAMILIES
            .iter()
            .find(|entry| entry.family == self)
            .expect("every family has an entry, as a test checks")
    }

    /// Its name, such as `wan2.1-t2v`: a variant's name without the size.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.entry().name
    }
}

/// Block count and widths of a published checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Size {
    /// Transformer blocks.
    pub block_count: u64,
    /// Width of the residual stream.
    pub dim: u64,
    /// Width of the feed-forward layer.
    pub ffn_dim: u64,
}

/// Scaled widths are multiples of at most this: elements of the longest quant block.
const ROUNDING: u64 = 256;

impl Size {
    /// Whether widths are these, or both divided by one number and then kept to a multiple of up to [`ROUNDING`].
    pub(crate) fn scales_to(self, dim: u64, ffn_dim: u64) -> bool {
        // The feed-forward width at so much of the other.
        let at = |dim: u64| {
            let scaled = u128::from(self.ffn_dim) * u128::from(dim) / u128::from(self.dim);
            u64::try_from(scaled).unwrap_or(u64::MAX)
        };
        let least = at(dim.saturating_sub(ROUNDING)).saturating_sub(ROUNDING);
        let most = at(dim.saturating_add(ROUNDING)).saturating_add(ROUNDING);
        match dim.cmp(&self.dim) {
            Ordering::Less => (least..=most).contains(&ffn_dim),
            Ordering::Equal => ffn_dim == self.ffn_dim,
            Ordering::Greater => false,
        }
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            block_count,
            dim,
            ffn_dim,
        } = self;
        write!(
            f,
            "{block_count} blocks of width {dim}, feed-forward {ffn_dim}"
        )
    }
}

/// A checkpoint that is known by name, or a family when the size is none that was published.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Variant {
    name: &'static str,
    family: Family,
    size: Option<Size>,
}

const SMALL: Size = size(30, 1536, 8960);
const LARGE: Size = size(40, 5120, 13824);

const fn size(block_count: u64, dim: u64, ffn_dim: u64) -> Size {
    Size {
        block_count,
        dim,
        ffn_dim,
    }
}

const fn variant(name: &'static str, family: Family, size: Size) -> Variant {
    Variant {
        name,
        family,
        size: Some(size),
    }
}

impl Variant {
    /// Every published size of every family, older ones first.
    #[rustfmt::skip]
    pub const ALL: &'static [Variant] = &[
        variant("wan2.1-t2v-1.3b", Family::T2v21, SMALL),
        variant("wan2.1-t2v-14b", Family::T2v21, LARGE),
        variant("wan2.1-i2v-14b", Family::I2v21, LARGE),
        variant("wan2.1-flf2v-14b", Family::Flf2v21, LARGE),
        variant("wan2.1-vace-1.3b", Family::Vace21, SMALL),
        variant("wan2.1-vace-14b", Family::Vace21, LARGE),
        variant("wan2.1-fun-inp-1.3b", Family::FunInp21, SMALL),
        variant("wan2.1-fun-inp-14b", Family::FunInp21, LARGE),
        variant("wan2.1-fun-control-1.3b", Family::FunControl21, SMALL),
        variant("wan2.1-fun-control-14b", Family::FunControl21, LARGE),
        variant("wan2.1-fun-camera-1.3b", Family::FunCamera21, SMALL),
        variant("wan2.1-fun-camera-14b", Family::FunCamera21, LARGE),
        variant("wan2.2-t2v-a14b", Family::T2v22, LARGE),
        variant("wan2.2-i2v-a14b", Family::I2v22, LARGE),
        variant("wan2.2-ti2v-5b", Family::Ti2v22, size(30, 3072, 14336)),
        variant("wan2.2-s2v-14b", Family::S2v22, LARGE),
        variant("wan2.2-animate-14b", Family::Animate22, LARGE),
        variant("wan2.2-vace-fun-a14b", Family::VaceFun22, LARGE),
        variant("wan2.2-fun-inp-a14b", Family::FunInp22, LARGE),
        variant("wan2.2-fun-control-a14b", Family::FunControl22, LARGE),
        variant("wan2.2-fun-camera-a14b", Family::FunCamera22, LARGE),
        variant("humo-17b", Family::Humo, LARGE),
        variant("scail-14b", Family::Scail, LARGE),
        variant("scail2-14b", Family::Scail2, LARGE),
        variant("longcat-video", Family::LongCat, size(48, 4096, 11008)),
    ];

    /// Looks up a published checkpoint such as `wan2.1-t2v-14b`.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL
            .iter()
            .copied()
            .find(|variant| variant.name == name)
    }

    /// The family itself, of no published size.
    #[must_use]
    pub fn of_family(family: Family) -> Self {
        Self {
            name: family.name(),
            family,
            size: None,
        }
    }

    /// Its name, such as `wan2.1-t2v-14b`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        self.name
    }

    /// Which modules it has.
    #[must_use]
    pub const fn family(self) -> Family {
        self.family
    }

    /// Block count and widths as published; `None` when only the family is known.
    #[must_use]
    pub const fn size(self) -> Option<Size> {
        self.size
    }

    /// Latent channels that go in and come out.
    #[must_use]
    pub fn channels(self) -> (u64, u64) {
        let entry = self.family.entry();
        (entry.in_channels, entry.out_channels)
    }

    /// Whether its blocks attend to an image embedding; `None` where checkpoints of the family differ.
    #[must_use]
    pub fn image(self) -> Option<bool> {
        self.family.entry().image
    }

    /// Its layout in numbers: main blocks, VACE blocks, and tensors of its authors' checkpoints. `None` when only the
    /// family is known.
    #[must_use]
    pub fn counts(self) -> Option<Counts> {
        let size = self.size?;
        let vace_blocks = self.vace_count(size.block_count);
        let layout = Layout::new(self.modules(), size.block_count, vace_blocks);
        let widths = Widths::of(size, self.channels());
        let convention = names::native(self.family == Family::LongCat);
        Some(Counts {
            blocks: size.block_count,
            vace_blocks,
            tensors: layout.in_file(convention, widths)?.len() as u64,
        })
    }

    /// VACE blocks of a model with so many main blocks: published ones have one for two in the small, for five in the
    /// large size.
    pub(crate) fn vace_count(self, block_count: u64) -> u64 {
        match self.family.entry().marker {
            Marker::Vace if block_count == SMALL.block_count => block_count / 2,
            Marker::Vace => block_count.div_ceil(5),
            _ => 0,
        }
    }

    /// Which modules it has; those of its authors where checkpoints differ.
    pub(crate) fn modules(self) -> Modules {
        let entry = self.family.entry();
        Modules {
            marker: entry.marker,
            image: entry.image.unwrap_or(false),
            reference: self.family == Family::FunControl22,
        }
    }

    /// Where two experts change, as a part of all timesteps, if the variant is a pair of experts: the one for high noise
    /// computes at this and above.
    ///
    /// Pairs that take an image beside the noise change earlier.
    #[must_use]
    pub fn boundary(self) -> Option<f64> {
        match self.family {
            Family::T2v22 | Family::VaceFun22 => Some(0.875),
            Family::I2v22 | Family::FunInp22 | Family::FunControl22 | Family::FunCamera22 => {
                Some(0.900)
            }
            _ => None,
        }
    }
}

/// How many blocks and tensors a variant has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counts {
    /// Main transformer blocks.
    pub blocks: u64,
    /// VACE blocks.
    pub vace_blocks: u64,
    /// Tensors under the authors' names.
    pub tensors: u64,
}

impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

impl Serialize for Variant {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of the published checkpoints' headers.
    #[test]
    fn every_variant_has_as_many_tensors_as_its_authors_checkpoint() {
        for (name, tensors) in [
            ("wan2.1-t2v-1.3b", 825),
            ("wan2.1-t2v-14b", 1095),
            ("wan2.1-i2v-14b", 1303),
            ("wan2.1-flf2v-14b", 1304),
            ("wan2.2-t2v-a14b", 1095),
            ("wan2.2-i2v-a14b", 1095),
            ("wan2.2-ti2v-5b", 825),
            ("wan2.2-s2v-14b", 1260),
            ("wan2.2-animate-14b", 1441),
            ("wan2.1-vace-1.3b", 1264),
            ("wan2.1-vace-14b", 1331),
            ("wan2.2-vace-fun-a14b", 1331),
            ("wan2.1-fun-inp-1.3b", 983),
            ("wan2.1-fun-inp-14b", 1303),
            ("wan2.1-fun-control-1.3b", 983),
            ("wan2.1-fun-control-14b", 1303),
            ("wan2.2-fun-inp-a14b", 1095),
            ("wan2.2-fun-control-a14b", 1097),
            ("wan2.1-fun-camera-1.3b", 989),
            ("wan2.1-fun-camera-14b", 1309),
            ("wan2.2-fun-camera-a14b", 1101),
            ("humo-17b", 1583),
            ("scail-14b", 1305),
            ("scail2-14b", 1307),
            ("longcat-video", 1022),
        ] {
            let variant = Variant::from_name(name).unwrap();
            assert_eq!(variant.counts().unwrap().tensors, tensors, "{name}");
        }
        assert_eq!(Variant::ALL.len(), 25);
    }

    #[test]
    fn every_variant_is_found_by_its_name_and_begins_with_its_familys() {
        for &variant in Variant::ALL {
            assert_eq!(Variant::from_name(variant.name()), Some(variant));
            assert!(
                variant.name().starts_with(variant.family().name()),
                "{variant}"
            );
        }
        assert_eq!(Variant::from_name("wan2.1-t2v"), None);
    }
}
