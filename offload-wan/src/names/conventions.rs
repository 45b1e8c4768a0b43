//! What each convention calls the tensors. Data only.

use super::{List, Naming};

/// A module, or a tensor that is alone in its module: what it is called, and which canonical modules it is.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) canonical: &'static [&'static str],
    pub(super) file: &'static str,
    /// The file's tensor has no axes of length 1.
    pub(super) squeezed: bool,
}

const fn row(canonical: &'static [&'static str], file: &'static str) -> Row {
    Row {
        canonical,
        file,
        squeezed: false,
    }
}

const fn squeezed(canonical: &'static [&'static str], file: &'static str) -> Row {
    Row {
        canonical,
        file,
        squeezed: true,
    }
}

/// How a convention writes a list of blocks.
#[derive(Debug)]
pub(super) struct Numbered {
    /// What stands before the number, with the dot.
    pub(super) file: &'static str,
    pub(super) list: List,
    /// What stands before the canonical name within the block.
    pub(super) inner: &'static str,
    pub(super) rows: &'static [Row],
}

/// A convention: names that are no row keep themselves if it is open, and mean nothing else.
#[derive(Debug)]
pub(crate) struct Convention {
    pub(crate) naming: Naming,
    /// Whether its names are LongCat-Video's.
    pub(crate) long_cat: bool,
    pub(super) lists: &'static [Numbered],
    /// What stands between the number of a main block and the rest, with the dot.
    wrapper: &'static str,
    pub(super) root: &'static [&'static [Row]],
    pub(super) open: bool,
}

impl Convention {
    pub(super) fn wrapper_in(&self, list: List) -> &'static str {
        match list {
            List::Main => self.wrapper,
            List::Vace | List::Injector | List::Fuser => "",
        }
    }
}

/// Lists of WAN's authors. Stacked in Animate alone: keys and values of the face.
const NATIVE_LISTS: &[Numbered] = &[
    numbered("blocks.", List::Main, "", &[]),
    numbered("vace_blocks.", List::Vace, "", &[]),
    numbered(
        "face_adapter.fuser_blocks.",
        List::Fuser,
        "",
        &[row(&["linear1_k", "linear1_v"], "linear1_kv")],
    ),
    numbered("audio_injector.injector.", List::Injector, "", &[]),
    numbered(
        "audio_injector.injector_adain_layers.",
        List::Injector,
        "adain.",
        &[],
    ),
];

/// WAN's authors.
pub(crate) static WAN_NATIVE: Convention = Convention {
    naming: Naming::Native,
    long_cat: false,
    lists: NATIVE_LISTS,
    wrapper: "",
    root: &[],
    open: true,
};

/// The same with each main block in another module, as a checkpoint of Animate has it: `blocks.0.block.norm3.weight`.
pub(crate) static WAN_WRAPPED: Convention = Convention {
    naming: Naming::Native,
    long_cat: false,
    lists: NATIVE_LISTS,
    wrapper: "block.",
    root: &[],
    open: true,
};

/// LongCat-Video with WAN's names: the canonical ones.
pub(crate) static LONG_CAT_REPACKED: Convention = Convention {
    naming: Naming::Repacked,
    long_cat: true,
    lists: &[numbered("blocks.", List::Main, "", &[])],
    wrapper: "",
    root: &[],
    open: true,
};

/// LongCat-Video's authors.
#[rustfmt::skip]
pub(crate) static LONG_CAT_NATIVE: Convention = Convention {
    naming: Naming::Native,
    long_cat: true,
    lists: &[numbered("blocks.", List::Main, "", &[
        row(&["modulation.1"], "adaLN_modulation.1"),
        row(&["self_attn.q", "self_attn.k", "self_attn.v"], "attn.qkv"),
        row(&["self_attn.norm_q"], "attn.q_norm"),
        row(&["self_attn.norm_k"], "attn.k_norm"),
        row(&["self_attn.o"], "attn.proj"),
        row(&["norm3"], "pre_crs_attn_norm"),
        row(&["cross_attn.q"], "cross_attn.q_linear"),
        row(&["cross_attn.k", "cross_attn.v"], "cross_attn.kv_linear"),
        row(&["cross_attn.norm_q"], "cross_attn.q_norm"),
        row(&["cross_attn.norm_k"], "cross_attn.k_norm"),
        row(&["cross_attn.o"], "cross_attn.proj"),
        row(&["ffn.w1"], "ffn.w1"),
        row(&["ffn.w2"], "ffn.w2"),
        row(&["ffn.w3"], "ffn.w3"),
    ])],
    wrapper: "",
    root: &[&[
        row(&["patch_embedding"], "x_embedder.proj"),
        row(&["time_embedding.mlp.0"], "t_embedder.mlp.0"),
        row(&["time_embedding.mlp.2"], "t_embedder.mlp.2"),
        row(&["text_embedding.0"], "y_embedder.y_proj.0"),
        row(&["text_embedding.2"], "y_embedder.y_proj.2"),
        row(&["head.head"], "final_layer.linear"),
        row(&["head.modulation.1"], "final_layer.adaLN_modulation.1"),
    ]],
    open: false,
};

/// A block of diffusers' transformer.
#[rustfmt::skip]
const DIFFUSERS_BLOCK: &[Row] = &[
    row(&["self_attn.q"], "attn1.to_q"),
    row(&["self_attn.k"], "attn1.to_k"),
    row(&["self_attn.v"], "attn1.to_v"),
    row(&["self_attn.o"], "attn1.to_out.0"),
    row(&["self_attn.norm_q"], "attn1.norm_q"),
    row(&["self_attn.norm_k"], "attn1.norm_k"),
    row(&["cross_attn.q"], "attn2.to_q"),
    row(&["cross_attn.k"], "attn2.to_k"),
    row(&["cross_attn.v"], "attn2.to_v"),
    row(&["cross_attn.o"], "attn2.to_out.0"),
    row(&["cross_attn.norm_q"], "attn2.norm_q"),
    row(&["cross_attn.norm_k"], "attn2.norm_k"),
    row(&["cross_attn.k_img"], "attn2.add_k_proj"),
    row(&["cross_attn.v_img"], "attn2.add_v_proj"),
    row(&["cross_attn.norm_k_img"], "attn2.norm_added_k"),
    // The two conventions swap the numbers of the norms.
    row(&["norm3"], "norm2"),
    row(&["ffn.0"], "ffn.net.0.proj"),
    row(&["ffn.2"], "ffn.net.2"),
    row(&["modulation"], "scale_shift_table"),
    // VACE's blocks alone.
    row(&["before_proj"], "proj_in"),
    row(&["after_proj"], "proj_out"),
];

/// One of the seven stages of Animate's motion encoder; its blur kernels are no tensors in diffusers.
macro_rules! motion_stage {
    ($native:literal, $file:literal) => {
        [
            row(
                &[concat!(
                    "motion_encoder.enc.net_app.convs.",
                    $native,
                    ".conv1.0"
                )],
                concat!("motion_encoder.res_blocks.", $file, ".conv1"),
            ),
            squeezed(
                &[concat!(
                    "motion_encoder.enc.net_app.convs.",
                    $native,
                    ".conv1.1"
                )],
                concat!("motion_encoder.res_blocks.", $file, ".conv1.act_fn"),
            ),
            row(
                &[concat!(
                    "motion_encoder.enc.net_app.convs.",
                    $native,
                    ".conv2.1"
                )],
                concat!("motion_encoder.res_blocks.", $file, ".conv2"),
            ),
            squeezed(
                &[concat!(
                    "motion_encoder.enc.net_app.convs.",
                    $native,
                    ".conv2.2"
                )],
                concat!("motion_encoder.res_blocks.", $file, ".conv2.act_fn"),
            ),
            row(
                &[concat!(
                    "motion_encoder.enc.net_app.convs.",
                    $native,
                    ".skip.1"
                )],
                concat!("motion_encoder.res_blocks.", $file, ".conv_skip"),
            ),
        ]
    };
}

static MOTION_STAGES: [[Row; 5]; 7] = [
    motion_stage!("1", "0"),
    motion_stage!("2", "1"),
    motion_stage!("3", "2"),
    motion_stage!("4", "3"),
    motion_stage!("5", "4"),
    motion_stage!("6", "5"),
    motion_stage!("7", "6"),
];

/// diffusers.
#[rustfmt::skip]
pub(crate) static WAN_DIFFUSERS: Convention = Convention {
    naming: Naming::Diffusers,
    long_cat: false,
    lists: &[
        numbered("blocks.", List::Main, "", DIFFUSERS_BLOCK),
        numbered("vace_blocks.", List::Vace, "", DIFFUSERS_BLOCK),
        numbered("face_adapter.", List::Fuser, "", &[
            row(&["linear1_q"], "to_q"),
            row(&["linear1_k"], "to_k"),
            row(&["linear1_v"], "to_v"),
            row(&["linear2"], "to_out"),
            row(&["q_norm"], "norm_q"),
            row(&["k_norm"], "norm_k"),
        ]),
    ],
    wrapper: "",
    root: &[&[
        row(&["patch_embedding"], "patch_embedding"),
        row(&["vace_patch_embedding"], "vace_patch_embedding"),
        row(&["pose_patch_embedding"], "pose_patch_embedding"),
        row(&["text_embedding.0"], "condition_embedder.text_embedder.linear_1"),
        row(&["text_embedding.2"], "condition_embedder.text_embedder.linear_2"),
        row(&["time_embedding.0"], "condition_embedder.time_embedder.linear_1"),
        row(&["time_embedding.2"], "condition_embedder.time_embedder.linear_2"),
        row(&["time_projection.1"], "condition_embedder.time_proj"),
        row(&["img_emb.proj.0"], "condition_embedder.image_embedder.norm1"),
        row(&["img_emb.proj.1"], "condition_embedder.image_embedder.ff.net.0.proj"),
        row(&["img_emb.proj.3"], "condition_embedder.image_embedder.ff.net.2"),
        row(&["img_emb.proj.4"], "condition_embedder.image_embedder.norm2"),
        row(&["img_emb.emb_pos"], "condition_embedder.image_embedder.pos_embed"),
        row(&["head.head"], "proj_out"),
        row(&["head.modulation"], "scale_shift_table"),
        row(&["face_encoder.conv1_local.conv"], "face_encoder.conv1_local"),
        row(&["face_encoder.conv2.conv"], "face_encoder.conv2"),
        row(&["face_encoder.conv3.conv"], "face_encoder.conv3"),
        row(&["face_encoder.out_proj"], "face_encoder.out_proj"),
        row(&["face_encoder.padding_tokens"], "face_encoder.padding_tokens"),
        row(&["motion_encoder.enc.net_app.convs.0.0"], "motion_encoder.conv_in"),
        squeezed(&["motion_encoder.enc.net_app.convs.0.1"], "motion_encoder.conv_in.act_fn"),
        row(&["motion_encoder.enc.net_app.convs.8"], "motion_encoder.conv_out"),
        row(&["motion_encoder.enc.fc.0"], "motion_encoder.motion_network.0"),
        row(&["motion_encoder.enc.fc.1"], "motion_encoder.motion_network.1"),
        row(&["motion_encoder.enc.fc.2"], "motion_encoder.motion_network.2"),
        row(&["motion_encoder.enc.fc.3"], "motion_encoder.motion_network.3"),
        row(&["motion_encoder.enc.fc.4"], "motion_encoder.motion_network.4"),
        row(&["motion_encoder.dec.direction.weight"], "motion_encoder.motion_synthesis_weight"),
    ], &MOTION_STAGES[0], &MOTION_STAGES[1], &MOTION_STAGES[2], &MOTION_STAGES[3], &MOTION_STAGES[4], &MOTION_STAGES[5],
        &MOTION_STAGES[6]],
    open: false,
};

const fn numbered(
    file: &'static str,
    list: List,
    inner: &'static str,
    rows: &'static [Row],
) -> Numbered {
    Numbered {
        file,
        list,
        inner,
        rows,
    }
}
