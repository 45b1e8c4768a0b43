//! The WAN transformer in candle, on weights that offload brings: an engine to copy from.
//!
//! - [`model`] is the transformer. It walks a pass and asks each visit for weights by name.
//! - [`weights`] makes candle's tensors of a lease.
//! - [`sampler`] has noise and its levels.
//! - [`Engine`], here, puts them together: which passes a run makes, and Euler's steps between them.
//!
//! Text encoder, image encoder and VAE are not in it: what they would give is seeded noise, [`Request::inputs`].

pub mod model;
pub mod sampler;
pub mod weights;

use std::error::Error;
use std::fmt;

use candle_core::{Device, Tensor};
use offload_core::cpu::{CpuDevice, CpuStream};
use offload_core::decode::Float;
use offload_core::executor::{Arrival, ArrivalPolicy, DeviceBudget, Offload};
use offload_core::model::PassKind;
use offload_wan::{Checkpoint, Guidance, PassOptions, WanModel};

use model::{Conditions, Config, PATCH, Visits, velocity};
use sampler::{Noise, noise_levels};

/// What may go wrong here is told, not told apart.
pub type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Tokens of a prompt: shorter ones are filled up with zeros, as WAN's authors do.
const TEXT_TOKENS: usize = 512;
const TEXT_DIM: usize = 4096;
/// Tokens of an image, of CLIP.
const IMAGE_TOKENS: usize = 257;
const IMAGE_DIM: usize = 1280;
/// Frames to a position of the latents; the first is one of its own.
const FRAMES_PER_LATENT: usize = 4;
/// Positions of the latents: three times those of 81 frames of 1280x720.
const MOST_LATENTS: usize = 1 << 20;
/// Channels beside the noise that say which frames are given, one for each of these frames.
const MASK_CHANNELS: usize = FRAMES_PER_LATENT;

/// A video to compute.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// Pixels across.
    pub width: usize,
    /// Pixels down.
    pub height: usize,
    /// Frames.
    pub frames: usize,
    /// Euler's steps.
    pub steps: u32,
    /// How far noise levels are shifted towards noise.
    pub shift: f64,
    /// Where the experts of a pair change, as a part of all timesteps; that of the variant if none is given.
    pub boundary: Option<f64>,
    /// How many times the difference that the prompt makes is taken; 1 does without the negative prompt.
    pub guidance: f64,
    /// Tokens of the prompt, and of the negative one.
    pub text_tokens: usize,
    /// Of the noise and of what stands in for the encoders.
    pub seed: u64,
}

impl Request {
    /// Whether the model is evaluated with the negative prompt too.
    #[must_use]
    pub fn is_guided(&self) -> bool {
        self.guidance != 1.0
    }

    /// Frames, height and width of the latents.
    ///
    /// # Errors
    /// When the video does not come apart into them, or they do not come apart into patches.
    pub fn latent_size(&self, config: &Config) -> Result<[usize; 3]> {
        let pixels = PATCH * config.pixels_per_latent;
        for (what, size) in [("width", self.width), ("height", self.height)] {
            if size == 0 || !size.is_multiple_of(pixels) {
                return Err(
                    format!("the {what} is {size}: it can be a multiple of {pixels}").into(),
                );
            }
        }
        if self.frames % FRAMES_PER_LATENT != 1 {
            let frames = self.frames;
            return Err(format!("{frames} frames: there can be 1, 5, 9 and so on").into());
        }
        let size = [
            self.frames / FRAMES_PER_LATENT + 1,
            self.height / config.pixels_per_latent,
            self.width / config.pixels_per_latent,
        ];
        let mut axes = size.iter();
        let latents = axes.try_fold(1usize, |product, axis| product.checked_mul(*axis));
        if latents.is_none_or(|latents| latents > MOST_LATENTS) {
            let (width, height, frames) = (self.width, self.height, self.frames);
            return Err(format!(
                "{width}x{height} pixels in {frames} frames: there can be {MOST_LATENTS} latents"
            )
            .into());
        }
        Ok(size)
    }

    /// Noise to begin with, and conditions, from one seeded sequence in the order: noise, texts, image states, image.
    ///
    /// # Errors
    /// As [`latent_size`](Self::latent_size), when the prompt is too long, and when candle fails.
    pub fn inputs(&self, config: &Config) -> Result<(Tensor, Conditions)> {
        let [frames, height, width] = self.latent_size(config)?;
        let Some(empty_tokens) = TEXT_TOKENS.checked_sub(self.text_tokens) else {
            let tokens = self.text_tokens;
            return Err(format!("a prompt of {tokens} tokens: there can be {TEXT_TOKENS}").into());
        };
        let mut noise = Noise::new(self.seed);
        let latents = noise.tensor((1, config.out_channels, frames, height, width))?;
        let texts = if self.is_guided() { 2 } else { 1 };
        let text = noise.tensor((texts, self.text_tokens, TEXT_DIM))?;
        let text = text.pad_with_zeros(1, 0, empty_tokens)?;
        let image = match config.image {
            true => Some(noise.tensor((1, IMAGE_TOKENS, IMAGE_DIM))?),
            false => None,
        };
        let beside = match config.channels_beside() {
            0 => None,
            channels => {
                let image_channels = channels.saturating_sub(MASK_CHANNELS);
                let image = noise.tensor((1, image_channels, frames, height, width))?;
                // The first frame is given, the others are not.
                let given = Tensor::ones(
                    (1, MASK_CHANNELS, 1, height, width),
                    image.dtype(),
                    &Device::Cpu,
                )?;
                let mask = given.pad_with_zeros(2, 0, frames - 1)?;
                Some(Tensor::cat(&[mask, image], 1)?)
            }
        };
        Ok((
            latents,
            Conditions {
                text,
                image,
                beside,
            },
        ))
    }
}

/// A transformer, or a pair of experts, under one budget.
pub struct Engine {
    config: Config,
    model: WanModel,
    offload: Offload<CpuDevice>,
    stream: CpuStream,
    request: Request,
}

impl Engine {
    /// Makes `checkpoint` ready for `request` within `budget`; with `low`, the expert for low noise, it is the one for
    /// high noise of a pair.
    ///
    /// # Errors
    /// When the checkpoint is none that is computed here, when both are no pair, when the schedule has no step for one of
    /// them, and when the budget does not do.
    pub fn new(
        checkpoint: &Checkpoint,
        low: Option<&Checkpoint>,
        budget: DeviceBudget,
        request: &Request,
    ) -> Result<Self> {
        let guidance = match request.is_guided() {
            // Both evaluations with each block: it is brought once for them.
            true => Guidance::Lockstep,
            false => Guidance::Off,
        };
        let options = PassOptions {
            guidance,
            steps: request.steps,
            ..PassOptions::default()
        };
        let model = match low {
            None => WanModel::new(checkpoint, &options)?,
            Some(low) => {
                let boundary = WanModel::boundary_of(checkpoint, low, request.boundary)?;
                let levels = noise_levels(request.steps, request.shift);
                let high = levels.iter().filter(|level| **level >= boundary);
                let options = PassOptions {
                    high_steps: Some(high.count() as u32),
                    ..options
                };
                WanModel::pair(checkpoint, low, Some(boundary), &options)?
            }
        };
        let config = Config::of(checkpoint)?;
        request.latent_size(&config)?;
        let device = CpuDevice::new();
        let offload = Offload::builder(&device)
            .model(model.model().clone())
            .device_budget(budget)
            .arrival(ArrivalPolicy {
                matrices: Arrival::Decoded(Float::F32),
                vectors: Arrival::Decoded(Float::F32),
            })
            .build()?;
        Ok(Self {
            config,
            model,
            offload,
            stream: device.inline_stream(),
            request: request.clone(),
        })
    }

    /// The transformer's numbers.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// What moves the weights.
    pub fn offload(&mut self) -> &mut Offload<CpuDevice> {
        &mut self.offload
    }

    /// The passes of the run: one for each noise level but the last.
    fn kinds(&self, levels: &[f64]) -> Vec<PassKind> {
        let steps = levels.iter().take(self.request.steps as usize);
        let passes = steps.flat_map(|level| {
            let expert = self.model.expert_at(level * 1000.0);
            self.model.step(expert, false)
        });
        passes.map(|pass| pass.kind).collect()
    }

    /// The velocity at `latents` for each text, in a pass of `kind`; `then` says which kind is next.
    ///
    /// # Errors
    /// When the pass fails, when shapes do not fit, and when candle fails.
    pub fn velocity(
        &mut self,
        (kind, then): (PassKind, Option<PassKind>),
        latents: &Tensor,
        timestep: f64,
        conditions: &Conditions,
    ) -> Result<Tensor> {
        let mut pass = self.offload.pass(kind, &self.stream)?;
        match then {
            Some(next) => pass.then(next)?,
            None => pass.last(),
        }
        let mut visits = Visits::new(pass, &self.model);
        velocity(&mut visits, &self.config, latents, timestep, conditions)
    }

    /// The latents of the video, `[1, channels, frames, height, width]`; `after` is told of each step that was made.
    ///
    /// # Errors
    /// As [`velocity`](Self::velocity).
    pub fn sample(&mut self, mut after: impl FnMut(u32)) -> Result<Tensor> {
        let (mut latents, conditions) = self.request.inputs(&self.config)?;
        let levels = noise_levels(self.request.steps, self.request.shift);
        let kinds = self.kinds(&levels);
        for (step, &kind) in kinds.iter().enumerate() {
            let next = kinds.get(step + 1).copied();
            let timestep = levels[step] * 1000.0;
            let velocity = self.velocity((kind, next), &latents, timestep, &conditions)?;
            let velocity = guided(&velocity, self.request.guidance)?;
            latents = (latents + (velocity * (levels[step + 1] - levels[step]))?)?;
            after(step as u32 + 1);
        }
        Ok(latents)
    }
}

/// What the prompt gives, or, beside a negative one, that and `scale - 1` times the difference.
fn guided(velocity: &Tensor, scale: f64) -> Result<Tensor> {
    let prompt = velocity.narrow(0, 0, 1)?;
    if velocity.dim(0)? == 1 {
        return Ok(prompt);
    }
    let negative = velocity.narrow(0, 1, 1)?;
    Ok((&negative + ((prompt - &negative)? * scale)?)?)
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine")
            .field("config", &self.config)
            .field("request", &self.request)
            .finish_non_exhaustive()
    }
}
