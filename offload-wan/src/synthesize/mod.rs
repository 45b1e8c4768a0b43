//! Writes checkpoints with seeded weights: real names, shapes and encodings, and numbers that a computation survives.
//!
//! For demonstrations, tests and benchmarks where no real checkpoint is at hand. The weights are no model's.

mod container;
mod contents;
mod numbers;
mod recipe;

use std::io;
use std::path::{Path, PathBuf};

use offload_core::encoding::Encoding;
use offload_core::format::gguf::{WriteError, Writer};
use offload_core::source::Source;
use offload_core::swappable::{SpecError, TensorSpec};
use serde_json::{Value, json};

use crate::layout::{FileTensor, Layout, PATCH_EMBEDDING, Widths, role_by_name, runs_after};
use crate::names::{self, List, Naming, Place, SCALED_FLAG};
use crate::variant::{Family, Size, Variant};
use container::Container;
use contents::{Content, Planned};
pub use recipe::Recipe;
use recipe::Scales;

/// What to write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SynthesizeSpec {
    /// Which modules and channels it has.
    pub family: Family,
    /// What its tensors are called.
    pub naming: Naming,
    /// Main transformer blocks; other blocks are as many as go with them.
    pub block_count: u64,
    /// Width of the residual stream.
    pub dim: u64,
    /// Width of the feed-forward layer.
    pub ffn_dim: u64,
    /// Which encodings the tensors have.
    pub recipe: Recipe,
    /// Different seeds give different weights.
    pub seed: u64,
}

impl Default for SynthesizeSpec {
    /// Text to video in `Q4_K_M`, large enough to stream and made in a second: 8 blocks of about 2.4 MB.
    fn default() -> Self {
        Self {
            family: Family::T2v21,
            naming: Naming::Native,
            block_count: 8,
            dim: 512,
            ffn_dim: 1536,
            recipe: Recipe::Q4KM,
            seed: 0,
        }
    }
}

/// Why no checkpoint was written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SynthesizeError {
    /// Only a family is known, which has no size.
    #[error("{variant} has no size")]
    NoSize {
        /// What was asked for.
        variant: Variant,
    },
    /// Checkpoints of the family are not called so.
    #[error("{family} has no {naming} names")]
    NoNaming {
        /// The family's name.
        family: &'static str,
        /// What was asked for.
        naming: Naming,
    },
    /// The container does not hold the encoding.
    #[error("{path}: {container} does not hold {recipe}", path = path.display(), recipe = recipe.name())]
    Container {
        /// The file.
        path: PathBuf,
        /// The container that its name means.
        container: &'static str,
        /// What was asked for.
        recipe: Recipe,
    },
    /// The encoding is another model's.
    #[error("{family} is not stored as {recipe}", recipe = recipe.name())]
    OtherRecipe {
        /// The family's name.
        family: &'static str,
        /// What was asked for.
        recipe: Recipe,
    },
    /// The widths do not fit the encodings.
    #[error("the widths do not fit")]
    Widths(#[from] SpecError),
    /// The file cannot be made or written.
    #[error("cannot make {path}", path = path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Writing failed.
    #[error("cannot write {path}", path = path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: WriteError,
    },
}

/// Writes a checkpoint of `spec`: a folder of shards with their index and a `config.json` if `path` is a folder or ends
/// like one, a safetensors file if its name ends so, else a GGUF file. The same spec gives the same bytes, on every
/// machine.
///
/// A file appears under its name when it is whole; until then it is called `path` with `.partial` behind. A few
/// megabytes at a time are in memory.
///
/// # Errors
/// When widths, names, encoding and container do not fit each other, and when a file cannot be written.
pub fn synthesize(spec: &SynthesizeSpec, path: impl AsRef<Path>) -> Result<(), SynthesizeError> {
    let path = path.as_ref();
    let container = Container::of(path);
    if !spec.recipe.fits(container) {
        return Err(SynthesizeError::Container {
            path: path.to_path_buf(),
            container: container.name(),
            recipe: spec.recipe,
        });
    }
    let tensors = spec.tensors()?;
    match container {
        Container::Folder => container::folder(spec, &tensors, path),
        Container::Safetensors => container::safetensors(&tensors, spec.seed, path),
        Container::Gguf => container::whole(path, |to| {
            spec.write_gguf(tensors, to)
                .map_err(|source| SynthesizeError::Write {
                    path: path.to_path_buf(),
                    source,
                })
        }),
    }
}

impl SynthesizeSpec {
    /// The layout of `variant` with its widths divided by `scale`, kept to what `recipe` allows; counts are never
    /// divided.
    ///
    /// # Errors
    /// When only the variant's family is known.
    pub fn of_variant(
        variant: Variant,
        recipe: Recipe,
        scale: u64,
        seed: u64,
    ) -> Result<Self, SynthesizeError> {
        let Some(size) = variant.size() else {
            return Err(SynthesizeError::NoSize { variant });
        };
        let multiple = recipe.width_multiple();
        let scaled = |width: u64| (width / scale.max(1) / multiple).max(1) * multiple;
        Ok(Self {
            family: variant.family(),
            naming: Naming::Native,
            block_count: size.block_count,
            dim: scaled(size.dim),
            ffn_dim: scaled(size.ffn_dim),
            recipe,
            seed,
        })
    }

    /// The checkpoint without its bytes, for planning: each tensor where [`synthesize`] would put it, 32-byte aligned.
    ///
    /// # Errors
    /// When widths, names and encoding do not fit each other.
    pub fn describe(&self) -> Result<Vec<TensorSpec>, SynthesizeError> {
        let mut end = 0u64;
        let described = self.tensors()?.into_iter().map(|tensor| {
            let start = end.next_multiple_of(32);
            end = start + tensor.bytes;
            let source = Source::Described { range: start..end };
            TensorSpec::new(tensor.name, tensor.shape, tensor.encoding, source)
        });
        Ok(described.collect::<Result<_, _>>()?)
    }

    fn write_gguf(&self, tensors: Vec<Planned>, to: impl io::Write) -> Result<(), WriteError> {
        let mut writer = Writer::new();
        writer
            .metadata("general.architecture", "wan")
            .metadata("general.quantization_version", 2u32)
            .metadata("general.file_type", self.recipe.file_type());
        for tensor in tensors {
            let (name, shape, encoding) =
                (tensor.name.clone(), tensor.shape.clone(), tensor.encoding);
            let seed = self.seed;
            writer.tensor_with(name, shape, encoding, move |to| tensor.write(seed, to));
        }
        writer.write_to(to)
    }

    fn variant(&self) -> Variant {
        Variant::of_family(self.family)
    }

    fn vace_count(&self) -> u64 {
        self.variant().vace_count(self.block_count)
    }

    /// What diffusers keep in `config.json`.
    fn config(&self) -> Value {
        let (in_channels, out_channels) = self.variant().channels();
        let modules = self.variant().modules();
        let image = modules.image;
        let mut config = json!({
            "_class_name": "WanTransformer3DModel",
            "attention_head_dim": 128,
            "num_attention_heads": self.dim / 128,
            "num_layers": self.block_count,
            "ffn_dim": self.ffn_dim,
            "in_channels": in_channels,
            "out_channels": out_channels,
            "text_dim": 4096,
            "freq_dim": 256,
            "patch_size": [1, 2, 2],
            "cross_attn_norm": true,
            "qk_norm": "rms_norm_across_heads",
            "eps": 1e-6,
            "image_dim": image.then_some(1280),
            "added_kv_proj_dim": image.then_some(self.dim),
        });
        let vace_count = self.vace_count();
        if vace_count > 0 {
            let layers = (0..vace_count)
                .map_while(|index| runs_after(List::Vace, index, self.block_count, vace_count));
            config["_class_name"] = json!("WanVACETransformer3DModel");
            config["vace_layers"] = json!(layers.collect::<Vec<_>>());
            config["vace_in_channels"] = json!(96);
        }
        config
    }

    /// Names, shapes, encodings and contents, in the order in which converters write them: blocks, the rest, and last
    /// what they had left out.
    fn tensors(&self) -> Result<Vec<Planned>, SynthesizeError> {
        let (variant, family) = (self.variant(), self.family.name());
        let is_long_cat = self.family == Family::LongCat;
        if self.recipe.scales() == Some(Scales::Int8) && !is_long_cat {
            return Err(SynthesizeError::OtherRecipe {
                family,
                recipe: self.recipe,
            });
        }
        let no_naming = || SynthesizeError::NoNaming {
            family,
            naming: self.naming,
        };
        let convention = names::of_naming(self.naming, is_long_cat).ok_or_else(no_naming)?;
        let layout = Layout::new(variant.modules(), self.block_count, self.vace_count());
        let size = Size {
            block_count: self.block_count,
            dim: self.dim,
            ffn_dim: self.ffn_dim,
        };
        let widths = Widths::of(size, variant.channels());
        let files = layout.in_file(convention, widths).ok_or_else(no_naming)?;
        let (last, files): (Vec<_>, Vec<_>) = files
            .into_iter()
            .partition(|file| file.expected.name == PATCH_EMBEDDING);
        let mut all = Vec::new();
        for file in files.into_iter().chain(last) {
            self.plan(file, &mut all)?;
        }
        if self.recipe.scales() == Some(Scales::Old) {
            all.push(planned(
                SCALED_FLAG.to_owned(),
                vec![1],
                Encoding::F8E4M3,
                Content::Flag,
            )?);
        }
        Ok(all)
    }

    /// The tensor, and what belongs to it.
    fn plan(&self, file: FileTensor, all: &mut Vec<Planned>) -> Result<(), SynthesizeError> {
        let FileTensor {
            place,
            expected,
            name,
            shape,
        } = file;
        // Both conventions have the same weights.
        let sequence = format!("{place}{}", expected.name);
        let is_vector = shape.iter().filter(|len| **len > 1).count() <= 1
            || role_by_name(expected.name).is_some();
        let is_block = matches!(place, Place::Block(..));
        // As converters do: tables and what is no matrix are not quantised.
        let is_quantised = is_block && shape.len() == 2 && !expected.name.starts_with("modulation");
        let encoding = match (is_vector, is_quantised) {
            (true, _) => Encoding::F32,
            (false, true) => self.recipe.of_block(&sequence),
            (false, false) if expected.name == PATCH_EMBEDDING => Encoding::F32,
            (false, false) => self.recipe.of_root(),
        };
        let (mean, deviation) = distribution(expected.name, &shape);
        let random = |mean, deviation| Content::Random {
            sequence: sequence.clone(),
            mean,
            deviation,
        };
        let scales = self.recipe.scales().filter(|_| is_quantised && !is_vector);
        let Some(scales) = scales else {
            all.push(planned(name, shape, encoding, random(mean, deviation))?);
            return Ok(());
        };
        let rows = shape.first().copied().unwrap_or(1);
        let owner = name.strip_suffix(".weight").unwrap_or(&name).to_owned();
        // The weights that scales make: a deviation of a few dozen as stored.
        let stored = random(0.0, STORED_DEVIATION);
        let scale = Content::Constant(deviation / STORED_DEVIATION);
        let mut add = |leaf: &str, shape: Vec<u64>, encoding, content| {
            all.push(planned(
                format!("{owner}.{leaf}"),
                shape,
                encoding,
                content,
            )?);
            Ok::<(), SynthesizeError>(())
        };
        match scales {
            Scales::Old => {
                add("weight", shape, encoding, stored)?;
                add("scale_weight", vec![1], Encoding::F32, scale)
            }
            Scales::Mixed => {
                let text = r#"{"format": "float8_e4m3fn"}"#;
                add("weight", shape, encoding, stored)?;
                add("weight_scale", Vec::new(), Encoding::F32, scale)?;
                let len = text.len() as u64;
                add("comfy_quant", vec![len], Encoding::U8, Content::Text(text))
            }
            Scales::Int8 => {
                add("weight_int8", shape, encoding, stored)?;
                add("weight_scale", vec![rows], Encoding::F32, scale)
            }
        }
    }
}

/// Standard deviation of weights that have scales, before these are applied.
const STORED_DEVIATION: f32 = 30.0;

fn planned(
    name: String,
    shape: Vec<u64>,
    encoding: Encoding,
    content: Content,
) -> Result<Planned, SynthesizeError> {
    match encoding.bytes_of(&shape) {
        Ok(bytes) => Ok(Planned {
            name,
            shape,
            encoding,
            bytes,
            content,
        }),
        Err(source) => Err(SpecError::Encoding { name, source }.into()),
    }
}

/// Mean and standard deviation: what the authors' initialisation gives, so that activations stay in range.
fn distribution(name: &str, shape: &[u64]) -> (f32, f32) {
    let fan_in: u64 = shape.iter().skip(1).product();
    if name.ends_with(".bias") {
        (0.0, 0.02)
    } else if name.ends_with("modulation") {
        let width = shape.last().copied().unwrap_or(1);
        (0.0, (width as f32).sqrt().recip())
    } else if shape.len() == 1 {
        (1.0, 0.02)
    } else {
        (0.0, (fan_in.max(1) as f32).sqrt().recip())
    }
}
