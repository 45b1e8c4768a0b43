//! What programs here are asked about WAN models: which passes to make, and both experts of a pair.

use std::error::Error;
use std::io::{self, Write};
use std::path::PathBuf;

use bytesize::ByteSize;
use clap::Args;
use offload_core::model::Model;
use offload_core::plan::Plan;
use offload_wan::{
    Checkpoint, Evaluates, Expert, Guidance, PassOptions, StepPass, VaceOrder, Variant, WanModel,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Which passes are made.
#[derive(Debug, Clone, Args)]
pub(crate) struct PassArguments {
    /// When VACE blocks run: interleaved with the main ones, all-first, or off. Default: interleaved.
    #[arg(long, value_name = "ORDER", value_parser = parse::<VaceOrder>)]
    vace_order: Option<VaceOrder>,
    /// Guidance: off, separate (a pass with the prompt and one without it), or lockstep (one pass for both).
    #[arg(long, value_name = "HOW", default_value = "off", value_parser = parse::<Guidance>)]
    pub(crate) guidance: Guidance,
    /// Main blocks that the pass without the prompt leaves out, such as 9,10; goes with `--guidance separate`.
    #[arg(long, value_name = "N,N", value_delimiter = ',')]
    skip_layers: Vec<u64>,
    /// Bring the projections of keys and values of text and image in the first step only; the engine keeps what they give.
    #[arg(long)]
    cache_cross_attention: bool,
    /// Where the two experts of a pair change, as a part of all timesteps. Default: the variant's.
    #[arg(long, value_name = "PART")]
    boundary: Option<f64>,
}

impl PassArguments {
    /// The options of a run of `steps` steps.
    fn options(&self, steps: u32) -> PassOptions {
        PassOptions {
            vace: self.vace_order.unwrap_or_default(),
            guidance: self.guidance,
            skip_layers: self.skip_layers.clone(),
            cache_cross_attention: self.cache_cross_attention,
            steps: steps.max(1),
            high_steps: None,
        }
    }

    /// An option that asks for more than one plain pass.
    fn asked(&self) -> Option<&'static str> {
        let options = [
            (self.vace_order.is_some(), "--vace-order"),
            (self.guidance != Guidance::Off, "--guidance"),
            (!self.skip_layers.is_empty(), "--skip-layers"),
            (self.cache_cross_attention, "--cache-cross-attention"),
            (self.boundary.is_some(), "--boundary"),
        ];
        let asked = options.into_iter().find(|(is_asked, _)| *is_asked);
        asked.map(|(_, option)| option)
    }

    /// Refuses what would have no effect.
    fn check(&self, checkpoint: &Checkpoint, is_pair: bool) -> Result<(), &'static str> {
        if self.vace_order.is_some() && checkpoint.detection().vace_block_count == 0 {
            return Err("--vace-order: the model has no VACE blocks");
        }
        if self.boundary.is_some() && !is_pair {
            return Err("--boundary: one expert alone has none, it goes with a pair");
        }
        match self.guidance {
            _ if self.skip_layers.is_empty() => Ok(()),
            Guidance::Separate => Ok(()),
            Guidance::Off => Err("--skip-layers: without guidance no pass leaves blocks out"),
            Guidance::Lockstep => Err(
                "--skip-layers: in lockstep each block is brought for the evaluation with the prompt all the same",
            ),
        }
    }
}

/// How far WAN's noise levels are shifted towards noise by default.
const SHIFT: f64 = 5.0;

/// How many of `steps` steps, evenly spaced but for WAN's shift, the expert for high noise makes: those that begin at
/// `boundary` or above. Each expert makes one at least, if there are two.
pub(crate) fn high_steps(steps: u32, boundary: f64) -> u32 {
    let is_high = |step: &u32| {
        let even = 1.0 - f64::from(*step) / f64::from(steps);
        SHIFT * even / (1.0 + (SHIFT - 1.0) * even) >= boundary
    };
    let high = (0..steps).filter(is_high).count() as u32;
    high.clamp(1, steps.saturating_sub(1).max(1))
}

/// What a step takes under a plan.
#[derive(Debug, Serialize)]
pub(crate) struct StepReport {
    /// Whose it is, in a pair.
    expert: Option<Expert>,
    /// Which of the steps: `all`, the `first`, or `later` ones.
    which: &'static str,
    /// What is computed in each of its passes.
    evaluates: Vec<Evaluates>,
    wire_bytes: u64,
    predicted_seconds: f64,
}

impl StepReport {
    /// Of every expert, in order.
    pub(crate) fn all(wan: &WanModel, plan: &Plan) -> Vec<Self> {
        let experts = match wan.boundary() {
            None => vec![None],
            Some(_) => vec![Some(Expert::High), Some(Expert::Low)],
        };
        let of = |expert, which, passes: Vec<StepPass>| {
            let kinds = || passes.iter().map(|pass| &plan.kinds[pass.kind.index()]);
            Self {
                expert,
                which,
                evaluates: passes.iter().map(|pass| pass.evaluates).collect(),
                wire_bytes: kinds().map(|kind| kind.wire_bytes_per_pass).sum(),
                predicted_seconds: kinds().map(|kind| kind.predicted_pass_s).sum(),
            }
        };
        let of_expert = |expert| {
            let (first, later) = (wan.step(expert, true), wan.step(expert, false));
            if first == later {
                vec![of(expert, "all", first)]
            } else {
                vec![of(expert, "first", first), of(expert, "later", later)]
            }
        };
        experts.into_iter().flat_map(of_expert).collect()
    }

    pub(crate) fn print(&self, out: &mut dyn Write) -> io::Result<()> {
        let which = match self.which {
            "all" => "a",
            which => which,
        };
        let expert = self.expert.map_or("", Expert::name);
        let words = [which, expert, "step"].into_iter();
        let words: Vec<&str> = words.filter(|word| !word.is_empty()).collect();
        let passes = match self.evaluates[..] {
            [Evaluates::Both] => "1 pass for both evaluations".to_owned(),
            [_] => "1 pass".to_owned(),
            _ => format!("{} passes", self.evaluates.len()),
        };
        let (bytes, seconds) = (ByteSize(self.wire_bytes), self.predicted_seconds);
        writeln!(
            out,
            "step        {}: {passes}, {bytes} moved, {seconds:.3} s predicted",
            words.join(" ")
        )
    }
}

/// The word that a setting has in files.
pub(crate) fn parse<T: DeserializeOwned>(word: &str) -> Result<T, String> {
    serde_json::from_value(serde_json::Value::from(word)).map_err(|error| error.to_string())
}

pub(crate) fn parse_variant(name: &str) -> Result<Variant, String> {
    Variant::from_name(name).ok_or_else(|| {
        let names: Vec<_> = Variant::ALL.iter().map(|variant| variant.name()).collect();
        format!(
            "`{name}` is no variant that is known: there are {}",
            names.join(", ")
        )
    })
}

/// A model to plan or to stream: a WAN transformer, a pair of them, or an encoder.
pub(crate) struct Subject {
    pub(crate) model: Model,
    pub(crate) wan: Option<WanModel>,
}

impl Subject {
    /// The model of `checkpoint`, with the expert for low noise in `low` if it is one of a pair.
    pub(crate) fn new(
        checkpoint: &Checkpoint,
        low: Option<&Checkpoint>,
        arguments: &PassArguments,
        steps: u32,
    ) -> Result<Self, Box<dyn Error>> {
        if checkpoint.detection().encoder.is_some() {
            let asked = low.map(|_| "--low").or(arguments.asked());
            if let Some(option) = asked {
                let reason = "an encoder has neither experts nor passes to choose";
                return Err(format!("{option}: {reason}").into());
            }
            return Ok(Self {
                model: checkpoint.model()?,
                wan: None,
            });
        }
        arguments.check(checkpoint, low.is_some())?;
        let wan = match low {
            Some(low) => {
                let boundary = WanModel::boundary_of(checkpoint, low, arguments.boundary)?;
                // The planner wants a step of each.
                let steps = steps.max(2);
                let options = PassOptions {
                    high_steps: Some(high_steps(steps, boundary)),
                    ..arguments.options(steps)
                };
                WanModel::pair(checkpoint, low, Some(boundary), &options)?
            }
            None => WanModel::new(checkpoint, &arguments.options(steps))?,
        };
        Ok(Self {
            model: wan.model().clone(),
            wan: Some(wan),
        })
    }
}

/// Files of the expert for low noise.
#[derive(Debug, Clone, Args)]
pub(crate) struct LowArguments {
    /// The expert for low noise of a pair; FILE is then the one for high noise.
    #[arg(long = "low", id = "low", value_name = "FILE", requires = "files")]
    files: Vec<PathBuf>,
}

impl LowArguments {
    pub(crate) fn open(&self) -> Result<Option<Checkpoint>, Box<dyn Error>> {
        Ok(match self.files.is_empty() {
            true => None,
            false => Some(Checkpoint::open_all(&self.files)?),
        })
    }
}
