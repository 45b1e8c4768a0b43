//! Text and image encoders that go with WAN, umT5 or T5 and CLIP: which layers a file of one has.
//!
//! They run once per prompt, before the transformer. Their layers are all alike, so each is held to the first one; no
//! table says what the first must have. Only T5 has something in its first layer for all: umT5 has a table of relative
//! positions in each, T5 one.

use std::collections::BTreeMap;
use std::sync::Arc;

use offload_core::model::{Model, Residency};
use offload_core::swappable::{Swappable, TensorSpec};

use crate::block::WanBlock;
use crate::checkpoint::BlockSummary;
use crate::detect::Scaling;
use crate::findings::{Finding, Findings, repeated};
use crate::layout::role_by_name;
use crate::names::{SCALED_FLAG, attached_to, canonical_leaf};
use crate::stored::Stored;
use crate::transformer::LayoutError;

/// How a kind of file calls an encoder's layers.
#[derive(Debug)]
struct Form {
    name: &'static str,
    /// A tensor that says so.
    marker: &'static str,
    /// What stands before a layer's number.
    layers: &'static str,
}

#[rustfmt::skip]
const FORMS: &[Form] = &[
    Form { name: "umt5", marker: "encoder.block.0.layer.0.SelfAttention.q.weight", layers: "encoder.block." },
    Form { name: "umt5", marker: "blocks.0.ffn.gate.0.weight", layers: "blocks." },
    Form { name: "umt5", marker: "enc.blk.0.attn_q.weight", layers: "enc.blk." },
    Form { name: "clip", marker: "vision_model.encoder.layers.0.self_attn.q_proj.weight", layers: "vision_model.encoder.layers." },
    Form { name: "clip", marker: "visual.transformer.0.attn.to_qkv.weight", layers: "visual.transformer." },
];

/// Names, from their start, of what comes after the layers.
const LAST: &[&str] = &[
    "encoder.final_layer_norm",
    "norm.",
    "head",
    "enc.output_norm",
    "vision_model.post_layernorm",
    "visual_projection",
    "visual.post_norm",
    "visual.head",
    "log_scale",
];

/// An encoder, by the names of its tensors.
#[derive(Debug, Clone)]
pub(crate) struct Encoder {
    form: &'static Form,
    /// What stands before all names.
    prefix: String,
    /// Whether only the first of several layers has a table of relative positions.
    shares_positions: bool,
}

/// The table of relative positions of a layer, as kinds of files call it.
const POSITIONS: [&str; 3] = [
    "layer.0.SelfAttention.relative_attention_bias.weight",
    "pos_embedding.embedding.weight",
    "attn_rel_b.weight",
];

/// Which layer a tensor is in.
enum Place<'a> {
    Layer(u64, &'a str),
    Root(&'a str),
    Outside,
}

impl Encoder {
    pub(crate) fn detect(tensors: &[TensorSpec]) -> Option<Self> {
        FORMS.iter().find_map(|form| {
            let mut prefixes = tensors.iter().filter_map(|tensor| {
                let prefix = tensor.name().strip_suffix(form.marker)?;
                (prefix.is_empty() || prefix.ends_with('.')).then(|| prefix.to_owned())
            });
            let mut encoder = Self {
                form,
                prefix: prefixes.next()?,
                shares_positions: false,
            };
            let layers = encoder.layers(tensors);
            let with_positions = layers.iter().filter(|(_, tensors)| {
                let mut names = tensors.iter().map(|(name, _)| name);
                names.any(|name| POSITIONS.contains(name))
            });
            let with_positions: Vec<u64> = with_positions.map(|(index, _)| *index).collect();
            encoder.shares_positions = layers.len() > 1 && with_positions == [0];
            Some(encoder)
        })
    }

    pub(crate) fn name(&self) -> &'static str {
        match self.shares_positions {
            true => "t5",
            false => self.form.name,
        }
    }

    fn place<'a>(&self, name: &'a str) -> Place<'a> {
        let Some(name) = name.strip_prefix(self.prefix.as_str()) else {
            return Place::Outside;
        };
        let layer = name.strip_prefix(self.form.layers).and_then(|rest| {
            let (number, rest) = rest.split_once('.')?;
            let is_number = number == "0" || !number.starts_with(['0', '+']);
            Some((number.parse().ok().filter(|_| is_number)?, rest))
        });
        match layer {
            Some((index, rest)) => Place::Layer(index, rest),
            None => Place::Root(name),
        }
    }

    fn layers<'a>(
        &self,
        tensors: &'a [TensorSpec],
    ) -> BTreeMap<u64, Vec<(&'a str, &'a TensorSpec)>> {
        let mut layers: BTreeMap<u64, Vec<_>> = BTreeMap::new();
        for tensor in tensors {
            if let Place::Layer(index, rest) = self.place(tensor.name()) {
                layers.entry(index).or_default().push((rest, tensor));
            }
        }
        layers
    }

    pub(crate) fn blocks(&self, tensors: &[TensorSpec]) -> Vec<BlockSummary> {
        let layers = self.layers(tensors).into_iter();
        layers
            .map(|(index, tensors)| BlockSummary {
                name: format!("layers.{index}"),
                tensor_count: tensors.len(),
                bytes: tensors
                    .iter()
                    .map(|(_, tensor)| tensor.source().len())
                    .sum(),
            })
            .collect()
    }

    /// How weights keep their scales; in an encoder's words, which has no layout to compare with.
    pub(crate) fn scaling(&self, tensors: &[TensorSpec]) -> Option<Scaling> {
        let names = || {
            let own = tensors.iter().map(TensorSpec::name);
            own.filter_map(|name| match self.place(name) {
                Place::Layer(_, rest) | Place::Root(rest) => Some(rest),
                // The flag of the whole file may stand without what stands before all names.
                Place::Outside => (name == SCALED_FLAG).then_some(name),
            })
        };
        let has = |leaf: &str| names().any(|name| name.rsplit('.').next() == Some(leaf));
        if has(SCALED_FLAG) || has("scale_weight") {
            Some(Scaling::ScaledFp8)
        } else if has("weight_int8") {
            Some(Scaling::Int8)
        } else if names().any(is_attached) {
            Some(Scaling::Mixed)
        } else {
            None
        }
    }

    /// What is wrong with weights of one part and with what lies beside them.
    fn stored(part: &[(&str, &TensorSpec)], scaling: Option<Scaling>) -> Vec<Finding> {
        let part: Vec<(String, &TensorSpec)> = part
            .iter()
            .map(|(name, tensor)| (canonical_leaf(name), *tensor))
            .collect();
        let beside = |wanted: &str| {
            let found = part.iter().find(|(name, _)| name == wanted);
            found.map(|(_, tensor)| *tensor)
        };
        let weights = part.iter().filter(|(name, _)| name.ends_with(".weight"));
        let findings = weights.flat_map(|(name, tensor)| {
            let stored = Stored::new(tensor, name, beside);
            let finding = stored.packed().or_else(|| stored.misencoded());
            let scale = stored.scale(finding.is_none(), scaling);
            finding.into_iter().chain(scale)
        });
        let twice = repeated(part.iter().map(|(name, tensor)| (name, *tensor)));
        findings.chain(twice).collect()
    }

    /// What a layer lacks that the first has, or has in another shape, and in all of the encoder weights that cannot be
    /// decoded or whose scales are missing or do not fit.
    pub(crate) fn findings(&self, tensors: &[TensorSpec]) -> Vec<Finding> {
        let (layers, scaling) = (self.layers(tensors), self.scaling(tensors));
        let mut all = Vec::new();
        let highest = layers.keys().next_back().copied().unwrap_or(0);
        let Some((_, model)) = layers.first_key_value() else {
            return all;
        };
        for (wanted, (index, tensors)) in (0..).zip(&layers) {
            if *index != wanted {
                all.push(Finding::MissingBlock {
                    block: format!("layers.{wanted}"),
                    block_count: layers.len() as u64,
                    highest,
                    expected: highest.saturating_add(1),
                });
                break;
            }
            let there: BTreeMap<&str, &TensorSpec> = tensors.iter().copied().collect();
            let wanted = model.iter().filter(|(name, _)| {
                *index == 0 || !self.shares_positions || !POSITIONS.contains(name)
            });
            for (name, first) in wanted {
                match there.get(name) {
                    // The text beside a weight that says how it is stored may be of any length.
                    Some(tensor) if tensor.shape() != first.shape() && !is_attached(name) => {
                        all.push(Finding::Misshapen {
                            tensor: tensor.name().to_owned(),
                            shape: tensor.shape().to_vec(),
                            expected: format!("{:?}, as {} has it", first.shape(), first.name()),
                        });
                    }
                    Some(_) => {}
                    None => all.push(Finding::Missing {
                        tensor: format!("{}{}{index}.{name}", self.prefix, self.form.layers),
                    }),
                }
            }
            for finding in Self::stored(tensors, scaling) {
                // What the first layer has may be missing for its weight's sake too.
                if !all.contains(&finding) {
                    all.push(finding);
                }
            }
        }
        let root = tensors
            .iter()
            .filter_map(|tensor| match self.place(tensor.name()) {
                Place::Root(name) => Some((name, tensor)),
                Place::Layer(..) | Place::Outside => None,
            });
        all.extend(Self::stored(&root.collect::<Vec<_>>(), scaling));
        all
    }

    /// What comes before the layers, the layers, and what comes after them; layers are the planner's to place.
    pub(crate) fn model(&self, tensors: &[TensorSpec]) -> Result<Model, LayoutError> {
        let layers = self.layers(tensors);
        let findings = self.findings(tensors);
        if !findings.is_empty() {
            return Err(LayoutError::Incomplete {
                findings: Findings(findings),
            });
        }
        let (mut before, mut after) = (Vec::new(), Vec::new());
        for tensor in tensors {
            if let Place::Root(name) = self.place(tensor.name()) {
                let is_last = LAST.iter().any(|last| name.starts_with(last));
                let list = if is_last { &mut after } else { &mut before };
                list.push(renamed(tensor, name));
            }
        }
        let mut parts = vec![("embedding".to_owned(), before)];
        for (index, tensors) in &layers {
            let tensors = tensors.iter().map(|(name, tensor)| renamed(tensor, name));
            parts.push((format!("layers.{index}"), tensors.collect()));
        }
        parts.push(("head".to_owned(), after));
        let last = parts.len() - 1;
        let mut blocks: Vec<Arc<dyn Swappable>> = Vec::new();
        let mut always = Vec::new();
        for (nth, (name, tensors)) in parts.into_iter().enumerate() {
            if tensors.is_empty() {
                continue;
            }
            if nth == 0 || nth == last {
                always.push(blocks.len());
            }
            blocks.push(Arc::new(WanBlock::new(name, tensors).scaled()?));
        }
        let mut model = Model::new(blocks)?;
        for index in always {
            model = model.with_residency(index, Residency::Always)?;
        }
        Ok(model)
    }
}

/// Whether a tensor of a layer belongs to a weight, such as its scale.
fn is_attached(name: &str) -> bool {
    attached_to(&canonical_leaf(name)).is_some()
}

fn renamed(tensor: &TensorSpec, name: &str) -> TensorSpec {
    let name = &canonical_leaf(name);
    let spec = tensor.clone().with_name(name);
    match role_by_name(name) {
        Some(role) => spec.with_role(role),
        None => spec,
    }
}
