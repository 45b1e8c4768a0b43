//! Writes checkpoints with seeded weights: real names, shapes and encodings, and numbers that a computation survives.
//!
//! For demonstrations, tests and benchmarks where no real checkpoint is at hand. The weights are no model's.

mod numbers;

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use offload_core::encoding::Encoding;
use offload_core::format::gguf::{WriteError, Writer};
use offload_core::source::Source;
use offload_core::swappable::{SpecError, TensorSpec};

use crate::layout::{BLOCK, BLOCK_IMAGE, Expected, ROOT, ROOT_IMAGE, role_by_name};
use crate::variant::Variant;
use numbers::Numbers;

/// Which encodings the tensors of a synthesised checkpoint have.
///
/// Biases, norms, modulation and the patch embedding are F32. Matrices outside the blocks are never quantised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Recipe {
    /// Every matrix F32.
    F32,
    /// Every matrix F16.
    F16,
    /// Every matrix BF16.
    BF16,
    /// Matrices of the blocks `Q8_0`, the others F16.
    Q8_0,
    /// Matrices of the blocks `Q4_K`, the values' and the second feed-forward one `Q6_K`, the others F16.
    Q4KM,
}

impl Recipe {
    /// Every recipe there is.
    pub const ALL: &'static [Recipe] = &[Self::F32, Self::F16, Self::BF16, Self::Q8_0, Self::Q4KM];

    /// Its name, such as `Q4_K_M`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::BF16 => "BF16",
            Self::Q8_0 => "Q8_0",
            Self::Q4KM => "Q4_K_M",
        }
    }

    /// Looks up a name such as `Q4_K_M` or `q4_k_m`.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL
            .iter()
            .copied()
            .find(|recipe| recipe.name().eq_ignore_ascii_case(name))
    }

    /// The number under which GGUF files name the mix: llama.cpp's `general.file_type`.
    const fn file_type(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Q8_0 => 7,
            Self::Q4KM => 15,
            Self::BF16 => 32,
        }
    }

    /// What the matrix of a block called `name` is stored in.
    fn of_block(self, name: &str) -> Encoding {
        match self {
            Self::Q8_0 => Encoding::Q8_0,
            Self::Q4KM if name.contains(".v.") || name == "ffn.2.weight" => Encoding::Q6K,
            Self::Q4KM => Encoding::Q4K,
            Self::F32 | Self::F16 | Self::BF16 => self.of_root(),
        }
    }

    const fn of_root(self) -> Encoding {
        match self {
            Self::F32 => Encoding::F32,
            Self::BF16 => Encoding::BF16,
            Self::F16 | Self::Q8_0 | Self::Q4KM => Encoding::F16,
        }
    }

    /// Widths must be multiples of this many elements.
    #[must_use]
    pub const fn width_multiple(self) -> u64 {
        match self {
            Self::Q4KM => 256,
            Self::F32 | Self::F16 | Self::BF16 | Self::Q8_0 => 128,
        }
    }
}

/// What to write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SynthesizeSpec {
    /// Transformer blocks.
    pub block_count: u64,
    /// Width of the residual stream.
    pub dim: u64,
    /// Width of the feed-forward layer.
    pub ffn_dim: u64,
    /// Latent channels that go in.
    pub in_channels: u64,
    /// Latent channels that come out.
    pub out_channels: u64,
    /// Whether blocks attend to an image embedding.
    pub image: bool,
    /// Which encodings the tensors have.
    pub recipe: Recipe,
    /// Different seeds give different weights.
    pub seed: u64,
}

impl Default for SynthesizeSpec {
    /// Text to video in `Q4_K_M`, large enough to stream and made in a second: 8 blocks of about 2.4 MB.
    fn default() -> Self {
        Self {
            block_count: 8,
            dim: 512,
            ffn_dim: 1536,
            in_channels: 16,
            out_channels: 16,
            image: false,
            recipe: Recipe::Q4KM,
            seed: 0,
        }
    }
}

/// Why no checkpoint was written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SynthesizeError {
    /// The variant has modules that are not synthesised, or no size.
    #[error("{variant} cannot be synthesised")]
    UnsupportedVariant {
        /// What was asked for.
        variant: Variant,
    },
    /// The file cannot be made.
    #[error("cannot make {path}", path = path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The widths do not fit the encodings, or writing failed.
    #[error("cannot write {path}", path = path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: WriteError,
    },
}

/// Writes a GGUF file of `spec` in native names. The same spec gives the same bytes, on every machine.
///
/// The file appears under its name when it is whole; until then it is called `path` with `.partial` behind. One tensor's
/// bytes at a time are in memory.
///
/// # Errors
/// When the widths do not fit the encodings, and when the file cannot be written.
pub fn synthesize(spec: &SynthesizeSpec, path: impl AsRef<Path>) -> Result<(), SynthesizeError> {
    let path = path.as_ref();
    let mut partial = path.as_os_str().to_owned();
    partial.push(".partial");
    let partial = PathBuf::from(partial);
    let fail = |source| SynthesizeError::File {
        path: path.to_path_buf(),
        source,
    };
    let file = File::create(&partial).map_err(fail)?;
    let written = spec.write_to(BufWriter::new(file));
    let result = match written {
        Ok(()) => fs::rename(&partial, path).map_err(fail),
        Err(source) => Err(SynthesizeError::Write {
            path: path.to_path_buf(),
            source,
        }),
    };
    if result.is_err() {
        // The first error is the one to report.
        let _ = fs::remove_file(&partial);
    }
    result
}

impl SynthesizeSpec {
    /// The layout of `variant` with its widths divided by `scale`, kept to what `recipe` allows; counts are never
    /// divided.
    ///
    /// # Errors
    /// When the variant has other modules than a plain WAN transformer.
    pub fn of_variant(
        variant: Variant,
        recipe: Recipe,
        scale: u64,
        seed: u64,
    ) -> Result<Self, SynthesizeError> {
        use crate::variant::Family;
        let plain = matches!(
            variant.family(),
            Family::T2v21
                | Family::T2v22
                | Family::I2v21
                | Family::I2v22
                | Family::Ti2v22
                | Family::FunInp21
                | Family::FunInp22
                | Family::FunControl21
        );
        let (true, Some(size), Some(image)) = (plain, variant.size(), variant.image()) else {
            return Err(SynthesizeError::UnsupportedVariant { variant });
        };
        let multiple = recipe.width_multiple();
        let scaled = |width: u64| (width / scale.max(1) / multiple).max(1) * multiple;
        let (in_channels, out_channels) = variant.channels();
        Ok(Self {
            block_count: size.block_count,
            dim: scaled(size.dim),
            ffn_dim: scaled(size.ffn_dim),
            in_channels,
            out_channels,
            image,
            recipe,
            seed,
        })
    }

    /// The checkpoint without its bytes, for planning: each tensor where [`synthesize`] would put it, 32-byte aligned.
    ///
    /// # Errors
    /// When the widths do not fit the encodings.
    pub fn describe(&self) -> Result<Vec<TensorSpec>, SpecError> {
        let mut end = 0u64;
        let described = self.tensors().into_iter().map(|tensor| {
            let Planned {
                name,
                shape,
                encoding,
            } = tensor;
            let bytes = match encoding.bytes_of(&shape) {
                Ok(bytes) => bytes,
                Err(source) => return Err(SpecError::Encoding { name, source }),
            };
            let start = end.next_multiple_of(32);
            end = start + bytes;
            TensorSpec::new(
                name,
                shape,
                encoding,
                Source::Described { range: start..end },
            )
        });
        described.collect()
    }

    fn write_to(&self, to: impl Write) -> Result<(), WriteError> {
        let mut writer = Writer::new();
        writer
            .metadata("general.architecture", "wan")
            .metadata("general.quantization_version", 2u32)
            .metadata("general.file_type", self.recipe.file_type());
        for tensor in self.tensors() {
            let (name, shape, encoding) =
                (tensor.name.clone(), tensor.shape.clone(), tensor.encoding);
            let seed = self.seed;
            writer.tensor_with(name, shape, encoding, move |to| {
                to.write_all(&tensor.bytes(seed))
            });
        }
        writer.write_to(to)
    }

    /// Names, shapes and encodings, in the order in which converters write them.
    fn tensors(&self) -> Vec<Planned> {
        let mut all = Vec::new();
        let image = |tensors: &'static [Expected]| if self.image { tensors } else { &[] };
        for index in 0..self.block_count {
            for expected in BLOCK.iter().chain(image(BLOCK_IMAGE)) {
                let matrix = self.recipe.of_block(expected.name);
                all.push(self.plan(format!("blocks.{index}."), expected, matrix));
            }
        }
        let root = ROOT.iter().chain(image(ROOT_IMAGE));
        all.extend(root.map(|expected| self.plan(String::new(), expected, self.recipe.of_root())));
        all.push(Planned {
            name: "patch_embedding.weight".to_owned(),
            shape: vec![self.dim, self.in_channels, 1, 2, 2],
            encoding: Encoding::F32,
        });
        all
    }

    fn plan(&self, owner: String, expected: &Expected, matrix: Encoding) -> Planned {
        let free = match expected.name {
            "text_embedding.0.weight" => TEXT_DIM,
            "time_embedding.0.weight" => FREQUENCY_DIM,
            "head.head.weight" | "head.head.bias" => self.out_channels.saturating_mul(4),
            _ => IMAGE_DIM,
        };
        let shape = expected.shape(self.dim, self.ffn_dim, free);
        let is_vector = shape.len() == 1 || role_by_name(expected.name).is_some();
        Planned {
            name: owner + expected.name,
            shape,
            encoding: if is_vector { Encoding::F32 } else { matrix },
        }
    }
}

/// Width of the text encoder, of the time frequencies and of the image encoder.
const TEXT_DIM: u64 = 4096;
const FREQUENCY_DIM: u64 = 256;
const IMAGE_DIM: u64 = 1280;

/// A tensor to write.
#[derive(Debug)]
struct Planned {
    name: String,
    shape: Vec<u64>,
    encoding: Encoding,
}

impl Planned {
    /// Mean and standard deviation: what the authors' initialisation gives, so that activations stay in range.
    fn distribution(&self) -> (f32, f32) {
        let fan_in: u64 = self.shape.iter().skip(1).product();
        if self.name.ends_with(".bias") {
            (0.0, 0.02)
        } else if self.name.ends_with("modulation") {
            let width = self.shape.last().copied().unwrap_or(1);
            (0.0, (width as f32).sqrt().recip())
        } else if self.shape.len() == 1 {
            (1.0, 0.02)
        } else {
            (0.0, (fan_in as f32).sqrt().recip())
        }
    }

    /// The encoded numbers of a tensor whose shape its encoding allows.
    fn bytes(&self, seed: u64) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut numbers = Numbers::new(seed, &self.name);
        let (mean, deviation) = self.distribution();
        let count: u64 = self.shape.iter().product();
        match self.encoding.quant_block_len() {
            1 => numbers.elements(self.encoding, count, (mean, deviation), &mut bytes),
            quant_block_len => {
                let blocks = count / quant_block_len;
                numbers.quant_blocks(self.encoding, blocks, deviation, &mut bytes);
            }
        }
        bytes
    }
}
