//! The transformer of WAN: what each block and group computes, in the order in which a pass brings them.
//!
//! Nothing here owns weights or knows when they move. [`velocity`] walks a pass; whatever computes gets the
//! [`Weights`] of the visit and leaves none behind.
//!
//! Shapes are written in brackets, slowest axis first: `batch` is 1, or 2 with guidance; `tokens` are the patches of all
//! frames, `dim` is the width of the model.

use candle_core::{D, Device, Tensor};
use offload_core::cpu::CpuDevice;
use offload_core::executor::Pass;
use offload_wan::{Checkpoint, Family, Group, Part, WanModel};

use crate::Result;
use crate::weights::{Weights, normalised};

const HEAD_DIM: usize = 128;
/// Latent positions of a patch, down and across.
pub const PATCH: usize = 2;
/// Cosines and sines that the time becomes.
const TIME_DIM: usize = 256;
/// Base of all wavelengths, of time and place.
const THETA: f64 = 10_000.0;
const EPS: f64 = 1e-6;
/// Of the norms around the image's projection: torch's default.
const IMAGE_EPS: f64 = 1e-5;
/// Attention scores that are in memory at once: 256 MiB.
const MOST_SCORES: usize = 1 << 26;

/// The numbers of a transformer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Config {
    /// Width.
    pub dim: usize,
    /// Transformer blocks.
    pub block_count: u64,
    /// Latent channels that go in: the noise, and what stands beside it.
    pub in_channels: usize,
    /// Latent channels that come out.
    pub out_channels: usize,
    /// Whether blocks attend to an image beside the text.
    pub image: bool,
    /// Pixels to a position of the latents, across and down.
    pub pixels_per_latent: usize,
}

impl Config {
    /// What `checkpoint` says.
    ///
    /// # Errors
    /// When the transformer is none that is computed here.
    pub fn of(checkpoint: &Checkpoint) -> Result<Self> {
        let found = checkpoint.detection();
        let variant = found.variant.ok_or("the checkpoint's variant is unknown")?;
        let pixels_per_latent = match variant.family() {
            Family::T2v21 | Family::T2v22 | Family::I2v21 | Family::I2v22 => 8,
            Family::Ti2v22 => 16,
            _ => {
                return Err(format!(
                    "the checkpoint is {variant}: WAN 2.1 and 2.2 from text or image to video are computed, no others"
                )
                .into());
            }
        };
        let channels =
            |count: Option<u64>| count.ok_or("the checkpoint does not tell its channels");
        let config = Self {
            dim: usize::try_from(found.dim)?,
            block_count: found.block_count,
            in_channels: usize::try_from(channels(found.in_channels)?)?,
            out_channels: usize::try_from(channels(found.out_channels)?)?,
            image: found.image,
            pixels_per_latent,
        };
        if config.dim == 0 || !config.dim.is_multiple_of(HEAD_DIM) {
            let dim = config.dim;
            return Err(
                format!("a width of {dim} does not come apart into heads of {HEAD_DIM}").into(),
            );
        }
        Ok(config)
    }

    /// Channels beside the noise: where the image is given, and the image.
    #[must_use]
    pub fn channels_beside(&self) -> usize {
        self.in_channels.saturating_sub(self.out_channels)
    }
}

/// What the video is to show.
#[derive(Debug, Clone)]
pub struct Conditions {
    /// States of the text encoder, `[batch, tokens, 4096]`.
    pub text: Tensor,
    /// States of the image encoder, `[1, tokens, 1280]`, if blocks attend to an image.
    pub image: Option<Tensor>,
    /// Latents beside the noise, `[1, channels, frames, height, width]`, if there are such channels.
    pub beside: Option<Tensor>,
}

/// The visits of a pass, asked for in the order in which the transformer needs them.
#[derive(Debug)]
pub struct Visits<'a> {
    pass: Pass<'a, CpuDevice>,
    model: &'a WanModel,
}

impl<'a> Visits<'a> {
    /// Those of `pass`, over `model`.
    pub fn new(pass: Pass<'a, CpuDevice>, model: &'a WanModel) -> Self {
        Self { pass, model }
    }

    /// What `compute` makes of the weights of `part`, which is to be next. They may be gone afterwards.
    fn next<T>(
        &mut self,
        part: Part,
        compute: impl FnOnce(&Weights<'_>) -> Result<T>,
    ) -> Result<T> {
        while let Some(lease) = self.pass.acquire()? {
            let (found, _) = self.model.part(lease.block_index());
            if found == part {
                return compute(&Weights::new(&lease));
            }
            // Tensors that no such transformer has are left alone.
            if found != Part::Other {
                return Err(format!("{} is visited, {part:?} is to be next", lease.name()).into());
            }
        }
        Err(format!("the pass ends before {part:?}").into())
    }

    fn group<T>(
        &mut self,
        group: Group,
        compute: impl FnOnce(&Weights<'_>) -> Result<T>,
    ) -> Result<T> {
        self.next(Part::Group(group), compute)
    }
}

/// The velocity at `latents`, `[1, channels, frames, height, width]`, at `timestep` of 0 to 1000: as many as there are
/// texts.
///
/// # Errors
/// When the pass fails, when the shapes do not fit, and when candle fails.
pub fn velocity(
    visits: &mut Visits<'_>,
    config: &Config,
    latents: &Tensor,
    timestep: f64,
    conditions: &Conditions,
) -> Result<Tensor> {
    let (_, _, frames, height, width) = latents.dims5()?;
    let grid = [frames, height / PATCH, width / PATCH];
    let batch = conditions.text.dim(0)?;
    let latents = match &conditions.beside {
        Some(beside) => Tensor::cat(&[latents, beside], 1)?,
        None => latents.clone(),
    };

    let hidden = visits.group(Group::PatchEmbedding, |weights| {
        weights.linear("", &patches(&latents, grid)?)
    })?;
    let (_, tokens, dim) = hidden.dims3()?;
    let mut hidden = hidden.expand((batch, tokens, dim))?.contiguous()?;
    let text = visits.group(Group::TextEmbedding, |weights| {
        weights.linear("2", &weights.linear("0", &conditions.text)?.gelu()?)
    })?;
    let time = visits.group(Group::TimeEmbedding, |weights| {
        weights.linear("2", &weights.linear("0", &sinusoid(timestep)?)?.silu()?)
    })?;
    let modulation = visits.group(Group::TimeProjection, |weights| {
        Ok(weights.linear("1", &time.silu()?)?.reshape((6, dim))?)
    })?;
    let image = match &conditions.image {
        Some(image) => {
            Some(visits.group(Group::ImgEmb, |weights| image_embedding(weights, image))?)
        }
        None => None,
    };
    let beside = Beside {
        modulation,
        text,
        image: image.map(|image| image.repeat((batch, 1, 1))).transpose()?,
        rotation: Rotation::new(grid)?,
    };
    for index in 0..config.block_count {
        hidden = visits.next(Part::Main(index), |weights| block(weights, hidden, &beside))?;
    }
    let time = time.reshape((1, dim))?;
    let patches = visits.group(Group::Head, |weights| head(weights, &hidden, &time))?;
    unpatched(&patches, grid, config.out_channels)
}

/// What every block reads beside its weights and the video.
struct Beside {
    /// `[6, dim]`.
    modulation: Tensor,
    /// `[batch, tokens, dim]`.
    text: Tensor,
    /// `[batch, tokens, dim]`.
    image: Option<Tensor>,
    rotation: Rotation,
}

fn block(weights: &Weights<'_>, hidden: Tensor, beside: &Beside) -> Result<Tensor> {
    let table = weights.tensor("modulation")?;
    let table = (table.reshape(beside.modulation.shape())? + &beside.modulation)?;
    let [shift, scale, gate, ffn_shift, ffn_scale, ffn_gate] = rows(&table)?;

    let x = modulated(&normalised(&hidden, EPS)?, &shift, &scale)?;
    let x = self_attention(weights, &x, &beside.rotation)?;
    let hidden = (hidden + x.broadcast_mul(&gate)?)?;

    let x = weights.layer_norm("norm3", &hidden, EPS)?;
    let hidden = (hidden + cross_attention(weights, &x, beside)?)?;

    let x = modulated(&normalised(&hidden, EPS)?, &ffn_shift, &ffn_scale)?;
    let x = weights.linear("ffn.2", &weights.linear("ffn.0", &x)?.gelu()?)?;
    Ok((hidden + x.broadcast_mul(&ffn_gate)?)?)
}

fn self_attention(weights: &Weights<'_>, x: &Tensor, rotation: &Rotation) -> Result<Tensor> {
    let q = query_or_key(weights, "self_attn", "q", x)?;
    let k = query_or_key(weights, "self_attn", "k", x)?;
    let v = heads(&weights.linear("self_attn.v", x)?)?;
    let x = attention(&rotation.apply(&q)?, &rotation.apply(&k)?, &v)?;
    weights.linear("self_attn.o", &x)
}

fn cross_attention(weights: &Weights<'_>, x: &Tensor, beside: &Beside) -> Result<Tensor> {
    let q = query_or_key(weights, "cross_attn", "q", x)?;
    let k = query_or_key(weights, "cross_attn", "k", &beside.text)?;
    let v = heads(&weights.linear("cross_attn.v", &beside.text)?)?;
    let mut x = attention(&q, &k, &v)?;
    if let Some(image) = &beside.image {
        let k = query_or_key(weights, "cross_attn", "k_img", image)?;
        let v = heads(&weights.linear("cross_attn.v_img", image)?)?;
        x = (x + attention(&q, &k, &v)?)?;
    }
    weights.linear("cross_attn.o", &x)
}

/// Projected, normed over all heads together, and taken apart into them.
fn query_or_key(weights: &Weights<'_>, attention: &str, name: &str, x: &Tensor) -> Result<Tensor> {
    let x = weights.linear(&format!("{attention}.{name}"), x)?;
    heads(&weights.rms_norm(&format!("{attention}.norm_{name}"), &x, EPS)?)
}

/// `[batch, tokens, dim]` as `[batch, heads, tokens, HEAD_DIM]`.
fn heads(x: &Tensor) -> Result<Tensor> {
    let (batch, tokens, dim) = x.dims3()?;
    let x = x.reshape((batch, tokens, dim / HEAD_DIM, HEAD_DIM))?;
    Ok(x.transpose(1, 2)?.contiguous()?)
}

/// Softmax attention of all queries to all keys, some queries at a time so that their scores fit in memory. The result
/// is `[batch, tokens, dim]`.
fn attention(q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
    let (batch, heads, queries, _) = q.dims4()?;
    let keys = k.dim(2)?;
    let k = k.t()?.contiguous()?;
    let at_once = (MOST_SCORES / (batch * heads * keys)).max(1);
    let mut parts = Vec::new();
    for first in (0..queries).step_by(at_once) {
        let q = q.narrow(2, first, at_once.min(queries - first))?;
        let scores = (q.contiguous()?.matmul(&k)? / (HEAD_DIM as f64).sqrt())?;
        parts.push(softmax(&scores)?.matmul(v)?);
    }
    let x = Tensor::cat(&parts, 2)?.transpose(1, 2)?;
    Ok(x.reshape((batch, queries, heads * HEAD_DIM))?)
}

fn softmax(scores: &Tensor) -> Result<Tensor> {
    let powers = scores
        .broadcast_sub(&scores.max_keepdim(D::Minus1)?)?
        .exp()?;
    Ok(powers.broadcast_div(&powers.sum_keepdim(D::Minus1)?)?)
}

/// Positions in time, height and width as angles by which pairs of numbers are turned.
struct Rotation {
    /// `[tokens, HEAD_DIM / 2, 1]` each.
    cos: Tensor,
    sin: Tensor,
}

impl Rotation {
    fn new(grid: [usize; 3]) -> Result<Self> {
        // Height and width get a third of a head each, in pairs, and time the rest.
        let third = HEAD_DIM / 6 * 2;
        let parts = [HEAD_DIM - 2 * third, third, third];
        let mut angles = Vec::with_capacity(grid.iter().product::<usize>() * HEAD_DIM / 2);
        for t in 0..grid[0] {
            for y in 0..grid[1] {
                for x in 0..grid[2] {
                    for (position, part) in [t, y, x].into_iter().zip(parts) {
                        let turn = |pair: usize| THETA.powf(-((2 * pair) as f64) / part as f64);
                        angles.extend((0..part / 2).map(|pair| position as f64 * turn(pair)));
                    }
                }
            }
        }
        let table = |function: fn(f64) -> f64| {
            let numbers: Vec<f32> = angles.iter().map(|&angle| function(angle) as f32).collect();
            let tokens = numbers.len() / (HEAD_DIM / 2);
            Tensor::from_vec(numbers, (tokens, HEAD_DIM / 2, 1), &Device::Cpu)
        };
        Ok(Self {
            cos: table(f64::cos)?,
            sin: table(f64::sin)?,
        })
    }

    fn apply(&self, x: &Tensor) -> Result<Tensor> {
        let (batch, heads, tokens, _) = x.dims4()?;
        let pairs = x.reshape((batch, heads, tokens, HEAD_DIM / 2, 2))?;
        let (one, other) = (pairs.narrow(4, 0, 1)?, pairs.narrow(4, 1, 1)?);
        let (cos, sin) = (&self.cos, &self.sin);
        let turned_one = (one.broadcast_mul(cos)? - other.broadcast_mul(sin)?)?;
        let turned_other = (one.broadcast_mul(sin)? + other.broadcast_mul(cos)?)?;
        Ok(Tensor::cat(&[turned_one, turned_other], 4)?.reshape(x.shape())?)
    }
}

fn image_embedding(weights: &Weights<'_>, image: &Tensor) -> Result<Tensor> {
    let x = weights.layer_norm("proj.0", image, IMAGE_EPS)?;
    let x = weights.linear("proj.3", &weights.linear("proj.1", &x)?.gelu_erf()?)?;
    weights.layer_norm("proj.4", &x, IMAGE_EPS)
}

fn head(weights: &Weights<'_>, hidden: &Tensor, time: &Tensor) -> Result<Tensor> {
    let dim = time.dim(1)?;
    let table = weights.tensor("modulation")?.reshape((2, dim))?;
    let [shift, scale] = rows(&table.broadcast_add(time)?)?;
    weights.linear(
        "head",
        &modulated(&normalised(hidden, EPS)?, &shift, &scale)?,
    )
}

fn modulated(x: &Tensor, shift: &Tensor, scale: &Tensor) -> Result<Tensor> {
    Ok(x.broadcast_mul(&(scale + 1.0)?)?.broadcast_add(shift)?)
}

fn rows<const N: usize>(table: &Tensor) -> Result<[Tensor; N]> {
    let rows = (0..N)
        .map(|row| table.get(row))
        .collect::<candle_core::Result<Vec<_>>>()?;
    Ok(rows.try_into().expect("N rows were taken"))
}

/// Cosines and sines of the time at wavelengths from short to long, `[1, 1, TIME_DIM]`.
fn sinusoid(timestep: f64) -> Result<Tensor> {
    let half = TIME_DIM / 2;
    let angles = (0..half).map(|index| timestep * THETA.powf(-(index as f64) / half as f64));
    let angles: Vec<f64> = angles.collect();
    let cosines = angles.iter().map(|angle| angle.cos() as f32);
    let sines = angles.iter().map(|angle| angle.sin() as f32);
    Ok(Tensor::from_iter(cosines.chain(sines), &Device::Cpu)?.reshape((1, 1, TIME_DIM))?)
}

/// `[1, channels, frames, height, width]` as `[1, tokens, channels of a patch]`.
fn patches(latents: &Tensor, [frames, height, width]: [usize; 3]) -> Result<Tensor> {
    let channels = latents.dim(1)?;
    let x = latents.reshape((channels, frames, height, PATCH, width, PATCH))?;
    let x = x.permute((1, 2, 4, 0, 3, 5))?;
    Ok(x.reshape((1, frames * height * width, channels * PATCH * PATCH))?)
}

/// The other way round; channels are the fastest axis of what the head gives, not the slowest.
fn unpatched(
    patches: &Tensor,
    [frames, height, width]: [usize; 3],
    channels: usize,
) -> Result<Tensor> {
    let batch = patches.dim(0)?;
    let x = patches.reshape(vec![batch, frames, height, width, PATCH, PATCH, channels])?;
    let x = x.permute(vec![0, 6, 1, 2, 4, 3, 5])?;
    Ok(x.reshape((batch, channels, frames, height * PATCH, width * PATCH))?)
}
