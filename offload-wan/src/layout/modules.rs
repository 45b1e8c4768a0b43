//! Each module of the family once: its tensors under canonical names, and their shapes. Data only.

use super::expected::Extent::{self, About, Dim, DimOver, Exactly, Ffn, In, Out, Published};
use super::expected::{Expected, constant, of};

const D: Extent = Dim(1);
const TEXT: Extent = Published(4096);
const FREQUENCIES: Extent = Published(256);
const IMAGE: Extent = Published(1280);
const AUDIO: Extent = Published(1024);
const HEAD: Extent = Published(128);
const ONE: Extent = Exactly(1);
const TWO: Extent = Exactly(2);

/// Every block of WAN.
pub(super) const BLOCK: &[Expected] = &[
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
pub(super) const BLOCK_IMAGE: &[Expected] = &[
    of("cross_attn.k_img.weight", &[D, D]),
    of("cross_attn.k_img.bias", &[D]),
    of("cross_attn.v_img.weight", &[D, D]),
    of("cross_attn.v_img.bias", &[D]),
    of("cross_attn.norm_k_img.weight", &[D]),
];

/// Every block of HuMo: attention to sound, between the one to the text and the feed-forward layer.
pub(super) const BLOCK_AUDIO: &[Expected] = &[
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
pub(super) const VACE: &[Expected] = &[
    of("after_proj.weight", &[D, D]),
    of("after_proj.bias", &[D]),
];

/// The first VACE block alone.
pub(super) const VACE_FIRST: &[Expected] = &[
    of("before_proj.weight", &[D, D]),
    of("before_proj.bias", &[D]),
];

/// Every audio injector, and the adaptive norm that goes with it.
pub(super) const INJECTOR: &[Expected] = &[
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
pub(super) const FUSER: &[Expected] = &[
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
pub(super) const LONG_CAT_BLOCK: &[Expected] = &[
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
pub(super) const ROOT: &[Expected] = &[
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
pub(super) const ROOT_IMAGE: &[Expected] = &[
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
pub(super) const ROOT_FIRST_LAST: &[Expected] =
    &[of("img_emb.emb_pos", &[ONE, Published(514), IMAGE])];

pub(super) const ROOT_VACE: &[Expected] = &[
    of(
        "vace_patch_embedding.weight",
        &[D, Published(96), ONE, TWO, TWO],
    ),
    of("vace_patch_embedding.bias", &[D]),
];

pub(super) const ROOT_REFERENCE: &[Expected] = &[
    of("ref_conv.weight", &[D, Published(16), TWO, TWO]),
    of("ref_conv.bias", &[D]),
];

pub(super) const ROOT_CAMERA: &[Expected] = &[
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
pub(super) const ROOT_SOUND: &[Expected] = &[
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

pub(super) const ROOT_HUMO: &[Expected] = &[
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

pub(super) const ROOT_POSE: &[Expected] = &[
    of(
        "patch_embedding_pose.weight",
        &[D, About(20), ONE, TWO, TWO],
    ),
    of("patch_embedding_pose.bias", &[D]),
];

pub(super) const ROOT_MASK: &[Expected] = &[
    of(
        "patch_embedding_mask.weight",
        &[D, About(28), ONE, TWO, TWO],
    ),
    of("patch_embedding_mask.bias", &[D]),
];

pub(super) const ROOT_ANIMATE: &[Expected] = &[
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

pub(super) const MOTION_STAGES: [&[Expected]; 7] = [
    motion_stage!("1", 32, 64),
    motion_stage!("2", 64, 128),
    motion_stage!("3", 128, 256),
    motion_stage!("4", 256, 512),
    motion_stage!("5", 512, 512),
    motion_stage!("6", 512, 512),
    motion_stage!("7", 512, 512),
];

/// Outside the blocks of LongCat-Video.
pub(super) const ROOT_LONG_CAT: &[Expected] = &[
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
