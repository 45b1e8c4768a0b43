//! Which tensors a model of the family consists of, with their shapes relative to its widths.
//!
//! Each module stands here once, under its canonical name; [`Layout`] puts modules together for a family. What a
//! checkpoint may have beside, and how findings are worded, is said where the layout is used.

use offload_core::swappable::{Role, TensorSpec};

use crate::names::{Convention, List, Place};
use crate::variant::{Marker, Modules, Size};

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

use Extent::{About, Dim, DimOver, Exactly, Ffn, In, Out, Published};

/// A tensor that must be there.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Expected {
    pub(crate) name: &'static str,
    shape: &'static [Extent],
    /// Only the authors' own checkpoints have it: a constant that was saved with the weights.
    pub(crate) constant: bool,
}

const D: Extent = Dim(1);
const TEXT: Extent = Published(4096);
const FREQUENCIES: Extent = Published(256);
const IMAGE: Extent = Published(1280);
const AUDIO: Extent = Published(1024);
const HEAD: Extent = Published(128);
const ONE: Extent = Exactly(1);
const TWO: Extent = Exactly(2);

const fn of(name: &'static str, shape: &'static [Extent]) -> Expected {
    Expected {
        name,
        shape,
        constant: false,
    }
}

const fn constant(name: &'static str, shape: &'static [Extent]) -> Expected {
    Expected {
        name,
        shape,
        constant: true,
    }
}

/// Every block of WAN.
const BLOCK: &[Expected] = &[
    of("self_attn.q.weight", &[D, D]),
    of("self_attn.q.bias", &[D]),
    of("self_attn.k.weight", &[D, D]),
    of("self_attn.k.bias", &[D]),
    of("self_attn.v.weight", &[D, D]),
    of("self_attn.v.bias", &[D]),
    of("self_attn.o.weight", &[D, D]),
    of("self_attn.o.bias", &[D]),
    of("self_attn.norm_q.weight", &[D]),
    of("self_attn.norm_k.weight", &[D]),
    of("cross_attn.q.weight", &[D, D]),
    of("cross_attn.q.bias", &[D]),
    of("cross_attn.k.weight", &[D, D]),
    of("cross_attn.k.bias", &[D]),
    of("cross_attn.v.weight", &[D, D]),
    of("cross_attn.v.bias", &[D]),
    of("cross_attn.o.weight", &[D, D]),
    of("cross_attn.o.bias", &[D]),
    of("cross_attn.norm_q.weight", &[D]),
    of("cross_attn.norm_k.weight", &[D]),
    of("norm3.weight", &[D]),
    of("norm3.bias", &[D]),
    of("ffn.0.weight", &[Ffn, D]),
    of("ffn.0.bias", &[Ffn]),
    of("ffn.2.weight", &[D, Ffn]),
    of("ffn.2.bias", &[D]),
    of("modulation", &[ONE, Exactly(6), D]),
];

/// Every block that attends to an image embedding.
const BLOCK_IMAGE: &[Expected] = &[
    of("cross_attn.k_img.weight", &[D, D]),
    of("cross_attn.k_img.bias", &[D]),
    of("cross_attn.v_img.weight", &[D, D]),
    of("cross_attn.v_img.bias", &[D]),
    of("cross_attn.norm_k_img.weight", &[D]),
];

/// Every block of HuMo: attention to sound, between the one to the text and the feed-forward layer.
const BLOCK_AUDIO: &[Expected] = &[
    of(
        "audio_cross_attn_wrapper.audio_cross_attn.q.weight",
        &[D, D],
    ),
    of("audio_cross_attn_wrapper.audio_cross_attn.q.bias", &[D]),
    of(
        "audio_cross_attn_wrapper.audio_cross_attn.k.weight",
        &[D, AUDIO_TOKEN],
    ),
    of("audio_cross_attn_wrapper.audio_cross_attn.k.bias", &[D]),
    of(
        "audio_cross_attn_wrapper.audio_cross_attn.v.weight",
        &[D, AUDIO_TOKEN],
    ),
    of("audio_cross_attn_wrapper.audio_cross_attn.v.bias", &[D]),
    of(
        "audio_cross_attn_wrapper.audio_cross_attn.o.weight",
        &[D, D],
    ),
    of("audio_cross_attn_wrapper.audio_cross_attn.o.bias", &[D]),
    of(
        "audio_cross_attn_wrapper.audio_cross_attn.norm_q.weight",
        &[D],
    ),
    of(
        "audio_cross_attn_wrapper.audio_cross_attn.norm_k.weight",
        &[D],
    ),
    of("audio_cross_attn_wrapper.norm1_audio.weight", &[D]),
    of("audio_cross_attn_wrapper.norm1_audio.bias", &[D]),
];

/// Width of HuMo's audio tokens.
const AUDIO_TOKEN: Extent = Published(1536);

/// Every VACE block, beside what every block has.
const VACE: &[Expected] = &[
    of("after_proj.weight", &[D, D]),
    of("after_proj.bias", &[D]),
];

/// The first VACE block alone.
const VACE_FIRST: &[Expected] = &[
    of("before_proj.weight", &[D, D]),
    of("before_proj.bias", &[D]),
];

/// Every audio injector, and the adaptive norm that goes with it.
const INJECTOR: &[Expected] = &[
    of("q.weight", &[D, D]),
    of("q.bias", &[D]),
    of("k.weight", &[D, D]),
    of("k.bias", &[D]),
    of("v.weight", &[D, D]),
    of("v.bias", &[D]),
    of("o.weight", &[D, D]),
    of("o.bias", &[D]),
    of("norm_q.weight", &[D]),
    of("norm_k.weight", &[D]),
    of("adain.linear.weight", &[Dim(2), D]),
    of("adain.linear.bias", &[Dim(2)]),
];

/// Every fuser block.
const FUSER: &[Expected] = &[
    of("linear1_k.weight", &[D, D]),
    of("linear1_k.bias", &[D]),
    of("linear1_v.weight", &[D, D]),
    of("linear1_v.bias", &[D]),
    of("linear1_q.weight", &[D, D]),
    of("linear1_q.bias", &[D]),
    of("linear2.weight", &[D, D]),
    of("linear2.bias", &[D]),
    of("q_norm.weight", &[HEAD]),
    of("k_norm.weight", &[HEAD]),
];

/// Every block of LongCat-Video.
const LONG_CAT_BLOCK: &[Expected] = &[
    of("modulation.1.weight", &[Dim(6), Published(512)]),
    of("modulation.1.bias", &[Dim(6)]),
    of("self_attn.q.weight", &[D, D]),
    of("self_attn.q.bias", &[D]),
    of("self_attn.k.weight", &[D, D]),
    of("self_attn.k.bias", &[D]),
    of("self_attn.v.weight", &[D, D]),
    of("self_attn.v.bias", &[D]),
    of("self_attn.norm_q.weight", &[HEAD]),
    of("self_attn.norm_k.weight", &[HEAD]),
    of("self_attn.o.weight", &[D, D]),
    of("self_attn.o.bias", &[D]),
    of("norm3.weight", &[D]),
    of("norm3.bias", &[D]),
    of("cross_attn.q.weight", &[D, D]),
    of("cross_attn.q.bias", &[D]),
    of("cross_attn.k.weight", &[D, D]),
    of("cross_attn.k.bias", &[D]),
    of("cross_attn.v.weight", &[D, D]),
    of("cross_attn.v.bias", &[D]),
    of("cross_attn.norm_q.weight", &[HEAD]),
    of("cross_attn.norm_k.weight", &[HEAD]),
    of("cross_attn.o.weight", &[D, D]),
    of("cross_attn.o.bias", &[D]),
    of("ffn.w1.weight", &[Ffn, D]),
    of("ffn.w2.weight", &[D, Ffn]),
    of("ffn.w3.weight", &[Ffn, D]),
];

/// Outside the blocks of WAN.
const ROOT: &[Expected] = &[
    of(PATCH_EMBEDDING, &[D, In, ONE, TWO, TWO]),
    of("patch_embedding.bias", &[D]),
    of("text_embedding.0.weight", &[D, TEXT]),
    of("text_embedding.0.bias", &[D]),
    of("text_embedding.2.weight", &[D, D]),
    of("text_embedding.2.bias", &[D]),
    of("time_embedding.0.weight", &[D, FREQUENCIES]),
    of("time_embedding.0.bias", &[D]),
    of("time_embedding.2.weight", &[D, D]),
    of("time_embedding.2.bias", &[D]),
    of("time_projection.1.weight", &[Dim(6), D]),
    of("time_projection.1.bias", &[Dim(6)]),
    of("head.head.weight", &[Out, D]),
    of("head.head.bias", &[Out]),
    of("head.modulation", &[ONE, TWO, D]),
];

/// The tensor that converters leave out.
pub(crate) const PATCH_EMBEDDING: &str = "patch_embedding.weight";

/// With an image embedding.
const ROOT_IMAGE: &[Expected] = &[
    of("img_emb.proj.0.weight", &[IMAGE]),
    of("img_emb.proj.0.bias", &[IMAGE]),
    of("img_emb.proj.1.weight", &[IMAGE, IMAGE]),
    of("img_emb.proj.1.bias", &[IMAGE]),
    of("img_emb.proj.3.weight", &[D, IMAGE]),
    of("img_emb.proj.3.bias", &[D]),
    of("img_emb.proj.4.weight", &[D]),
    of("img_emb.proj.4.bias", &[D]),
];

/// First and last frame.
const ROOT_FIRST_LAST: &[Expected] = &[of("img_emb.emb_pos", &[ONE, Published(514), IMAGE])];

const ROOT_VACE: &[Expected] = &[
    of(
        "vace_patch_embedding.weight",
        &[D, Published(96), ONE, TWO, TWO],
    ),
    of("vace_patch_embedding.bias", &[D]),
];

const ROOT_REFERENCE: &[Expected] = &[
    of("ref_conv.weight", &[D, Published(16), TWO, TWO]),
    of("ref_conv.bias", &[D]),
];

const ROOT_CAMERA: &[Expected] = &[
    of(
        "control_adapter.conv.weight",
        &[D, Published(1536), TWO, TWO],
    ),
    of("control_adapter.conv.bias", &[D]),
    of(
        "control_adapter.residual_blocks.0.conv1.weight",
        &[D, D, Exactly(3), Exactly(3)],
    ),
    of("control_adapter.residual_blocks.0.conv1.bias", &[D]),
    of(
        "control_adapter.residual_blocks.0.conv2.weight",
        &[D, D, Exactly(3), Exactly(3)],
    ),
    of("control_adapter.residual_blocks.0.conv2.bias", &[D]),
];

/// Sound to video.
const ROOT_SOUND: &[Expected] = &[
    of("trainable_cond_mask.weight", &[Exactly(3), D]),
    of("cond_encoder.weight", &[D, Published(16), ONE, TWO, TWO]),
    of("cond_encoder.bias", &[D]),
    of(
        "casual_audio_encoder.weights",
        &[ONE, Published(25), ONE, ONE],
    ),
    of(
        "casual_audio_encoder.encoder.conv1_local.conv.weight",
        &[D, AUDIO, Exactly(3)],
    ),
    of("casual_audio_encoder.encoder.conv1_local.conv.bias", &[D]),
    of(
        "casual_audio_encoder.encoder.conv1_global.conv.weight",
        &[DimOver(4), AUDIO, Exactly(3)],
    ),
    of(
        "casual_audio_encoder.encoder.conv1_global.conv.bias",
        &[DimOver(4)],
    ),
    of(
        "casual_audio_encoder.encoder.conv2.conv.weight",
        &[DimOver(2), DimOver(4), Exactly(3)],
    ),
    of(
        "casual_audio_encoder.encoder.conv2.conv.bias",
        &[DimOver(2)],
    ),
    of(
        "casual_audio_encoder.encoder.conv3.conv.weight",
        &[D, DimOver(2), Exactly(3)],
    ),
    of("casual_audio_encoder.encoder.conv3.conv.bias", &[D]),
    of("casual_audio_encoder.encoder.final_linear.weight", &[D, D]),
    of("casual_audio_encoder.encoder.final_linear.bias", &[D]),
    of(
        "casual_audio_encoder.encoder.padding_tokens",
        &[ONE, ONE, ONE, D],
    ),
    of(
        "frame_packer.proj.weight",
        &[D, Published(16), ONE, TWO, TWO],
    ),
    of("frame_packer.proj.bias", &[D]),
    of(
        "frame_packer.proj_2x.weight",
        &[D, Published(16), TWO, Exactly(4), Exactly(4)],
    ),
    of("frame_packer.proj_2x.bias", &[D]),
    of(
        "frame_packer.proj_4x.weight",
        &[D, Published(16), Exactly(4), Exactly(8), Exactly(8)],
    ),
    of("frame_packer.proj_4x.bias", &[D]),
];

const ROOT_HUMO: &[Expected] = &[
    of(
        "audio_proj.audio_proj_glob_1.layer.weight",
        &[Published(512), Published(51_200)],
    ),
    of("audio_proj.audio_proj_glob_1.layer.bias", &[Published(512)]),
    of(
        "audio_proj.audio_proj_glob_2.layer.weight",
        &[Published(512), Published(512)],
    ),
    of("audio_proj.audio_proj_glob_2.layer.bias", &[Published(512)]),
    of(
        "audio_proj.audio_proj_glob_3.layer.weight",
        &[Published(24_576), Published(512)],
    ),
    of(
        "audio_proj.audio_proj_glob_3.layer.bias",
        &[Published(24_576)],
    ),
    of(
        "audio_proj.audio_proj_glob_norm.layer.weight",
        &[AUDIO_TOKEN],
    ),
    of("audio_proj.audio_proj_glob_norm.layer.bias", &[AUDIO_TOKEN]),
];

const ROOT_POSE: &[Expected] = &[
    of(
        "patch_embedding_pose.weight",
        &[D, About(20), ONE, TWO, TWO],
    ),
    of("patch_embedding_pose.bias", &[D]),
];

const ROOT_MASK: &[Expected] = &[
    of(
        "patch_embedding_mask.weight",
        &[D, About(28), ONE, TWO, TWO],
    ),
    of("patch_embedding_mask.bias", &[D]),
];

const ROOT_ANIMATE: &[Expected] = &[
    of(
        "pose_patch_embedding.weight",
        &[D, Published(16), ONE, TWO, TWO],
    ),
    of("pose_patch_embedding.bias", &[D]),
    of(
        "face_encoder.conv1_local.conv.weight",
        &[Published(4096), Published(512), Exactly(3)],
    ),
    of("face_encoder.conv1_local.conv.bias", &[Published(4096)]),
    of(
        "face_encoder.conv2.conv.weight",
        &[Published(1024), Published(1024), Exactly(3)],
    ),
    of("face_encoder.conv2.conv.bias", &[Published(1024)]),
    of(
        "face_encoder.conv3.conv.weight",
        &[Published(1024), Published(1024), Exactly(3)],
    ),
    of("face_encoder.conv3.conv.bias", &[Published(1024)]),
    of("face_encoder.out_proj.weight", &[D, Published(1024)]),
    of("face_encoder.out_proj.bias", &[D]),
    of("face_encoder.padding_tokens", &[ONE, ONE, ONE, D]),
    of(
        "motion_encoder.enc.net_app.convs.0.0.weight",
        &[Published(32), Exactly(3), ONE, ONE],
    ),
    of(
        "motion_encoder.enc.net_app.convs.0.1.bias",
        &[ONE, Published(32), ONE, ONE],
    ),
    of(
        "motion_encoder.enc.net_app.convs.8.weight",
        &[MOTION, MOTION, Exactly(4), Exactly(4)],
    ),
    of("motion_encoder.enc.fc.0.weight", &[MOTION, MOTION]),
    of("motion_encoder.enc.fc.0.bias", &[MOTION]),
    of("motion_encoder.enc.fc.1.weight", &[MOTION, MOTION]),
    of("motion_encoder.enc.fc.1.bias", &[MOTION]),
    of("motion_encoder.enc.fc.2.weight", &[MOTION, MOTION]),
    of("motion_encoder.enc.fc.2.bias", &[MOTION]),
    of("motion_encoder.enc.fc.3.weight", &[MOTION, MOTION]),
    of("motion_encoder.enc.fc.3.bias", &[MOTION]),
    of("motion_encoder.enc.fc.4.weight", &[Published(20), MOTION]),
    of("motion_encoder.enc.fc.4.bias", &[Published(20)]),
    of(
        "motion_encoder.dec.direction.weight",
        &[MOTION, Published(20)],
    ),
];

const MOTION: Extent = Published(512);

/// A stage of the motion encoder, from so many channels to so many.
macro_rules! motion_stage {
    ($stage:literal, $in:literal, $out:literal) => {
        &[
            of(
                concat!(
                    "motion_encoder.enc.net_app.convs.",
                    $stage,
                    ".conv1.0.weight"
                ),
                &[Published($in), Published($in), Exactly(3), Exactly(3)],
            ),
            of(
                concat!("motion_encoder.enc.net_app.convs.", $stage, ".conv1.1.bias"),
                &[ONE, Published($in), ONE, ONE],
            ),
            constant(
                concat!(
                    "motion_encoder.enc.net_app.convs.",
                    $stage,
                    ".conv2.0.kernel"
                ),
                &[Exactly(4), Exactly(4)],
            ),
            of(
                concat!(
                    "motion_encoder.enc.net_app.convs.",
                    $stage,
                    ".conv2.1.weight"
                ),
                &[Published($out), Published($in), Exactly(3), Exactly(3)],
            ),
            of(
                concat!("motion_encoder.enc.net_app.convs.", $stage, ".conv2.2.bias"),
                &[ONE, Published($out), ONE, ONE],
            ),
            constant(
                concat!(
                    "motion_encoder.enc.net_app.convs.",
                    $stage,
                    ".skip.0.kernel"
                ),
                &[Exactly(4), Exactly(4)],
            ),
            of(
                concat!(
                    "motion_encoder.enc.net_app.convs.",
                    $stage,
                    ".skip.1.weight"
                ),
                &[Published($out), Published($in), ONE, ONE],
            ),
        ]
    };
}

const MOTION_STAGES: [&[Expected]; 7] = [
    motion_stage!("1", 32, 64),
    motion_stage!("2", 64, 128),
    motion_stage!("3", 128, 256),
    motion_stage!("4", 256, 512),
    motion_stage!("5", 512, 512),
    motion_stage!("6", 512, 512),
    motion_stage!("7", 512, 512),
];

/// Outside the blocks of LongCat-Video.
const ROOT_LONG_CAT: &[Expected] = &[
    of(PATCH_EMBEDDING, &[D, In, ONE, TWO, TWO]),
    of("patch_embedding.bias", &[D]),
    of(
        "time_embedding.mlp.0.weight",
        &[Published(512), FREQUENCIES],
    ),
    of("time_embedding.mlp.0.bias", &[Published(512)]),
    of(
        "time_embedding.mlp.2.weight",
        &[Published(512), Published(512)],
    ),
    of("time_embedding.mlp.2.bias", &[Published(512)]),
    of("text_embedding.0.weight", &[D, TEXT]),
    of("text_embedding.0.bias", &[D]),
    of("text_embedding.2.weight", &[D, D]),
    of("text_embedding.2.bias", &[D]),
    of("head.head.weight", &[Out, D]),
    of("head.head.bias", &[Out]),
    of("head.modulation.1.weight", &[Dim(2), Published(512)]),
    of("head.modulation.1.bias", &[Dim(2)]),
];

/// Groups outside the blocks, in the order of use; the last is used after the blocks.
pub(crate) const GROUPS: &[&str] = &[
    "patch_embedding",
    "patch_embedding_pose",
    "patch_embedding_mask",
    "pose_patch_embedding",
    "ref_conv",
    "control_adapter",
    "cond_encoder",
    "trainable_cond_mask",
    "frame_packer",
    "casual_audio_encoder",
    "audio_proj",
    "motion_encoder",
    "face_encoder",
    "text_embedding",
    "time_embedding",
    "time_projection",
    "img_emb",
    "vace_patch_embedding",
    "head",
];

/// Which group the tensor `name` outside the blocks is in.
pub(crate) fn group_of(name: &str) -> Option<&'static str> {
    let (root, _) = name.split_once('.')?;
    GROUPS.iter().copied().find(|known| *known == root)
}

/// After which main blocks audio injectors run, as far as there are such blocks.
const INJECTED_AFTER: [u64; 12] = [0, 4, 8, 12, 16, 20, 24, 27, 30, 33, 36, 39];

/// A fuser block runs after every so many main blocks, beginning with the first.
const FUSED_EVERY: u64 = 5;

/// After which main block the block `index` of another list runs; `None` when it goes with none that is there.
///
/// VACE blocks are `vace_count` and spread as the authors do; a configuration may place them otherwise.
pub(crate) fn runs_after(list: List, index: u64, block_count: u64, vace_count: u64) -> Option<u64> {
    let after = match list {
        List::Main => return None,
        List::Vace => index.checked_mul(block_count.checked_div(vace_count)?.max(1))?,
        List::Injector => *INJECTED_AFTER.get(usize::try_from(index).ok()?)?,
        List::Fuser => index.checked_mul(FUSED_EVERY)?,
    };
    (after < block_count).then_some(after)
}

/// A list of blocks: how many, and the tensors of each.
#[derive(Debug)]
pub(crate) struct ListLayout {
    pub(crate) list: List,
    pub(crate) count: u64,
    every: Vec<&'static [Expected]>,
    first: &'static [Expected],
}

impl ListLayout {
    /// The tensors of block `index`.
    pub(crate) fn tensors(&self, index: u64) -> impl Iterator<Item = &'static Expected> {
        let first = if index == 0 { self.first } else { &[] };
        let every = self.every.iter().copied().flatten();
        // A view of 'static tables: nothing of `self` is borrowed on.
        every.chain(first).collect::<Vec<_>>().into_iter()
    }
}

/// The tensors of a whole model.
#[derive(Debug)]
pub(crate) struct Layout {
    pub(crate) lists: Vec<ListLayout>,
    root: Vec<&'static [Expected]>,
}

impl Layout {
    /// That of a model of these modules, with `block_count` main blocks and `vace_count` of VACE.
    pub(crate) fn new(modules: Modules, block_count: u64, vace_count: u64) -> Self {
        let every = |tables: &[&'static [Expected]]| tables.to_vec();
        let list = |list, count, every| ListLayout {
            list,
            count,
            every,
            first: &[],
        };
        if modules.marker == Marker::LongCat {
            return Self {
                lists: vec![list(List::Main, block_count, every(&[LONG_CAT_BLOCK]))],
                root: vec![ROOT_LONG_CAT],
            };
        }
        let mut main = vec![BLOCK];
        let mut root = vec![ROOT];
        if modules.image {
            main.push(BLOCK_IMAGE);
            root.push(ROOT_IMAGE);
        }
        if modules.reference {
            root.push(ROOT_REFERENCE);
        }
        let count_of = |of: List| {
            (0..block_count)
                .take_while(move |&index| runs_after(of, index, block_count, 0).is_some())
        };
        let mut more = Vec::new();
        match modules.marker {
            Marker::Plain | Marker::LongCat => {}
            Marker::FirstLast => root.push(ROOT_FIRST_LAST),
            Marker::Vace => {
                root.push(ROOT_VACE);
                more.push(ListLayout {
                    first: VACE_FIRST,
                    ..list(List::Vace, vace_count, every(&[BLOCK, VACE]))
                });
            }
            Marker::Camera => root.push(ROOT_CAMERA),
            Marker::Sound => {
                root.push(ROOT_SOUND);
                let count = count_of(List::Injector).count() as u64;
                more.push(list(List::Injector, count, every(&[INJECTOR])));
            }
            Marker::Humo => {
                main.push(BLOCK_AUDIO);
                root.push(ROOT_HUMO);
            }
            Marker::Animate => {
                root.push(ROOT_ANIMATE);
                root.extend(MOTION_STAGES);
                let count = count_of(List::Fuser).count() as u64;
                more.push(list(List::Fuser, count, every(&[FUSER])));
            }
            Marker::Scail => root.push(ROOT_POSE),
            Marker::Scail2 => root.extend([ROOT_POSE, ROOT_MASK]),
        }
        let mut lists = vec![list(List::Main, block_count, main)];
        lists.extend(more);
        Self { lists, root }
    }

    /// The list of that kind, if the model has one.
    pub(crate) fn list(&self, list: List) -> Option<&ListLayout> {
        self.lists.iter().find(|layout| layout.list == list)
    }

    /// The tensors outside the blocks.
    pub(crate) fn root(&self) -> impl Iterator<Item = &'static Expected> {
        self.root.clone().into_iter().flatten()
    }

    /// Every tensor as a file of that convention has it, blocks first; `None` if the convention does not know them.
    ///
    /// Parts that the convention stacks are one tensor.
    pub(crate) fn in_file(
        &self,
        convention: &Convention,
        widths: Widths,
    ) -> Option<Vec<FileTensor>> {
        let mut all: Vec<FileTensor> = Vec::new();
        let blocks = self.lists.iter().flat_map(|layout| {
            (0..layout.count).flat_map(move |index| {
                let place = Place::Block(layout.list, index);
                layout.tensors(index).map(move |expected| (place, expected))
            })
        });
        let has_constants = convention.naming == crate::Naming::Native;
        for (place, expected) in blocks.chain(self.root().map(|expected| (Place::Root, expected))) {
            if expected.constant && !has_constants {
                continue;
            }
            let file = convention.file_name(place, expected.name)?;
            let mut shape = expected.shape(widths);
            if file.squeezed {
                shape.retain(|len| *len != 1);
            }
            let (nth, of) = file.part;
            if let Some(first) = shape.first_mut() {
                *first = first.saturating_mul(of as u64);
            }
            if nth == 0 {
                all.push(FileTensor {
                    place,
                    expected,
                    name: file.name,
                    shape,
                });
            }
        }
        Some(all)
    }
}

/// A tensor as a file has it.
#[derive(Debug)]
pub(crate) struct FileTensor {
    pub(crate) place: Place,
    /// The first of the canonical tensors in it.
    pub(crate) expected: &'static Expected,
    pub(crate) name: String,
    pub(crate) shape: Vec<u64>,
}

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

/// Positions of a patch: 1 by 2 by 2.
pub(crate) const PATCH_LEN: u64 = 4;

impl Extent {
    /// What it comes to, or `None` where anything may stand.
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
            .all(|(wanted, found)| wanted.is_none_or(|wanted| wanted == *found))
}

/// Whether `shape` is that of five dimensions with the first two as one.
fn is_merged(wanted: &[Option<u64>], shape: &[u64]) -> bool {
    let ([first, second, rest @ ..], [merged, others @ ..]) = (wanted, shape) else {
        return false;
    };
    let fits = match (first, second) {
        (Some(first), Some(second)) => first.checked_mul(*second) == Some(*merged),
        (Some(first), None) => *first > 0 && merged % first == 0,
        _ => false,
    };
    wanted.len() == 5 && fits && rest.iter().copied().eq(others.iter().map(|len| Some(*len)))
}

/// What the tensor called `name` is to the computation, where the name tells: tables and norms stay exact.
pub(crate) fn role_by_name(name: &str) -> Option<Role> {
    let leaf = name.rsplit('.').next().unwrap_or(name);
    let owner = name.strip_suffix(leaf).unwrap_or("").trim_end_matches('.');
    let owner = owner.rsplit('.').next().unwrap_or(owner);
    let is_vector = matches!(
        leaf,
        "bias" | "modulation" | "padding_tokens" | "weights" | "kernel"
    ) || crate::names::ATTACHED.contains(&leaf)
        || owner.starts_with("norm")
        || owner.ends_with("norm")
        || owner == "trainable_cond_mask";
    is_vector.then_some(Role::Vector)
}

/// Rows `nth * len / of` to `(nth + 1) * len / of` of a tensor; `None` when its rows or bytes do not come apart so.
pub(crate) fn rows(spec: &TensorSpec, nth: usize, of: usize) -> Option<TensorSpec> {
    let (nth, of) = (nth as u64, of as u64);
    let (first, rest) = spec.shape().split_first()?;
    let len = spec.source().len();
    if !first.is_multiple_of(of) || !len.is_multiple_of(of) {
        return None;
    }
    let part = len / of;
    let shape: Vec<u64> = [first / of]
        .into_iter()
        .chain(rest.iter().copied())
        .collect();
    let source = spec.source().slice(nth * part..(nth + 1) * part);
    let rows = TensorSpec::new(spec.name(), shape, spec.encoding(), source).ok()?;
    Some(rows.with_role(spec.role()))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use offload_core::encoding::Encoding;

    use super::*;

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
        let patch = of(PATCH_EMBEDDING, &[D, In, ONE, TWO, TWO]);
        for shape in [&[8, 16, 1, 2, 2][..], &[128, 1, 2, 2], &[8, 48, 1, 2, 2]] {
            assert_eq!(patch.check(shape, widths(8, 16), 1), Ok(()), "{shape:?}");
        }
        for shape in [&[9, 16, 1, 2, 2][..], &[129, 1, 2, 2], &[128, 1, 4]] {
            assert!(patch.check(shape, widths(8, 16), 1).is_err(), "{shape:?}");
        }
        let exact = Widths {
            in_channels: Some(16),
            ..widths(8, 16)
        };
        assert!(patch.check(&[136, 1, 2, 2], exact, 1).is_err());
    }

    #[test]
    fn tables_norms_and_biases_are_vectors() {
        for name in [
            "modulation",
            "ffn.0.bias",
            "norm3.weight",
            "self_attn.norm_q.weight",
            "cross_attn.norm_k_img.weight",
            "attn.q_norm.weight",
            "ffn.0.weight_scale",
        ] {
            assert_eq!(role_by_name(name), Some(Role::Vector), "{name}");
        }
        for name in ["ffn.0.weight", "self_attn.q.weight", "weight", "emb_pos"] {
            assert_eq!(role_by_name(name), None, "{name}");
        }
    }

    #[test]
    fn rows_come_apart_where_quant_blocks_allow() {
        let bytes: Vec<u8> = (0..6 * 34).map(|byte| byte as u8).collect();
        let spec = TensorSpec::new("qkv", [6, 32], Encoding::Q8_0, Bytes::from(bytes)).unwrap();
        let part = rows(&spec, 2, 3).unwrap();
        assert_eq!(part.shape(), [2, 32]);
        let mut read = [0; 68];
        part.source().read(0, &mut read).unwrap();
        assert_eq!((read[0], read[67]), (136, 203));
        assert!(rows(&spec, 0, 4).is_none());
    }

    #[test]
    fn every_other_block_runs_after_a_main_one() {
        let after = |list, count, vace| {
            (0..)
                .map_while(move |index| runs_after(list, index, count, vace))
                .collect::<Vec<_>>()
        };
        assert_eq!(after(List::Vace, 40, 8), [0, 5, 10, 15, 20, 25, 30, 35]);
        assert_eq!(after(List::Vace, 30, 15)[..4], [0, 2, 4, 6]);
        assert_eq!(after(List::Injector, 40, 0), INJECTED_AFTER);
        assert_eq!(after(List::Injector, 6, 0), [0, 4]);
        assert_eq!(after(List::Fuser, 40, 0).len(), 8);
        assert_eq!(after(List::Main, 40, 0), [0; 0]);
    }
}
