//! What each tensor is called in each convention, name by name as the published checkpoints have them.
//!
//! Written out and not made from the tables that it holds the code to: reading and writing use the same ones, so that a
//! row that is wrong is wrong in both directions, and a checkpoint that was made reads back as if it were right.

use super::*;

/// In a block: WAN's authors, diffusers.
#[rustfmt::skip]
const BLOCK: &[(&str, &str)] = &[
    ("self_attn.q.weight", "attn1.to_q.weight"),
    ("self_attn.q.bias", "attn1.to_q.bias"),
    ("self_attn.k.weight", "attn1.to_k.weight"),
    ("self_attn.k.bias", "attn1.to_k.bias"),
    ("self_attn.v.weight", "attn1.to_v.weight"),
    ("self_attn.v.bias", "attn1.to_v.bias"),
    ("self_attn.o.weight", "attn1.to_out.0.weight"),
    ("self_attn.o.bias", "attn1.to_out.0.bias"),
    ("cross_attn.q.weight", "attn2.to_q.weight"),
    ("cross_attn.q.bias", "attn2.to_q.bias"),
    ("cross_attn.k.weight", "attn2.to_k.weight"),
    ("cross_attn.k.bias", "attn2.to_k.bias"),
    ("cross_attn.v.weight", "attn2.to_v.weight"),
    ("cross_attn.v.bias", "attn2.to_v.bias"),
    ("cross_attn.o.weight", "attn2.to_out.0.weight"),
    ("cross_attn.o.bias", "attn2.to_out.0.bias"),
    ("norm3.weight", "norm2.weight"),
    ("norm3.bias", "norm2.bias"),
    ("ffn.0.weight", "ffn.net.0.proj.weight"),
    ("ffn.0.bias", "ffn.net.0.proj.bias"),
    ("ffn.2.weight", "ffn.net.2.weight"),
    ("ffn.2.bias", "ffn.net.2.bias"),
    ("cross_attn.k_img.weight", "attn2.add_k_proj.weight"),
    ("cross_attn.k_img.bias", "attn2.add_k_proj.bias"),
    ("cross_attn.v_img.weight", "attn2.add_v_proj.weight"),
    ("cross_attn.v_img.bias", "attn2.add_v_proj.bias"),
    ("self_attn.norm_q.weight", "attn1.norm_q.weight"),
    ("self_attn.norm_k.weight", "attn1.norm_k.weight"),
    ("cross_attn.norm_q.weight", "attn2.norm_q.weight"),
    ("cross_attn.norm_k.weight", "attn2.norm_k.weight"),
    ("cross_attn.norm_k_img.weight", "attn2.norm_added_k.weight"),
    ("modulation", "scale_shift_table"),
];

/// In a block of VACE alone: WAN's authors, diffusers.
const VACE: &[(&str, &str)] = &[
    ("before_proj.weight", "proj_in.weight"),
    ("before_proj.bias", "proj_in.bias"),
    ("after_proj.weight", "proj_out.weight"),
    ("after_proj.bias", "proj_out.bias"),
];

/// Outside the blocks: WAN's authors, diffusers.
#[rustfmt::skip]
const ROOT: &[(&str, &str)] = &[
    ("patch_embedding.weight", "patch_embedding.weight"),
    ("patch_embedding.bias", "patch_embedding.bias"),
    ("text_embedding.0.weight", "condition_embedder.text_embedder.linear_1.weight"),
    ("text_embedding.0.bias", "condition_embedder.text_embedder.linear_1.bias"),
    ("text_embedding.2.weight", "condition_embedder.text_embedder.linear_2.weight"),
    ("text_embedding.2.bias", "condition_embedder.text_embedder.linear_2.bias"),
    ("time_embedding.0.weight", "condition_embedder.time_embedder.linear_1.weight"),
    ("time_embedding.0.bias", "condition_embedder.time_embedder.linear_1.bias"),
    ("time_embedding.2.weight", "condition_embedder.time_embedder.linear_2.weight"),
    ("time_embedding.2.bias", "condition_embedder.time_embedder.linear_2.bias"),
    ("time_projection.1.weight", "condition_embedder.time_proj.weight"),
    ("time_projection.1.bias", "condition_embedder.time_proj.bias"),
    ("head.head.weight", "proj_out.weight"),
    ("head.head.bias", "proj_out.bias"),
    ("img_emb.proj.0.weight", "condition_embedder.image_embedder.norm1.weight"),
    ("img_emb.proj.0.bias", "condition_embedder.image_embedder.norm1.bias"),
    ("img_emb.proj.1.weight", "condition_embedder.image_embedder.ff.net.0.proj.weight"),
    ("img_emb.proj.1.bias", "condition_embedder.image_embedder.ff.net.0.proj.bias"),
    ("img_emb.proj.3.weight", "condition_embedder.image_embedder.ff.net.2.weight"),
    ("img_emb.proj.3.bias", "condition_embedder.image_embedder.ff.net.2.bias"),
    ("img_emb.proj.4.weight", "condition_embedder.image_embedder.norm2.weight"),
    ("img_emb.proj.4.bias", "condition_embedder.image_embedder.norm2.bias"),
    ("vace_patch_embedding.weight", "vace_patch_embedding.weight"),
    ("vace_patch_embedding.bias", "vace_patch_embedding.bias"),
    ("head.modulation", "scale_shift_table"),
    ("img_emb.emb_pos", "condition_embedder.image_embedder.pos_embed"),
];

/// In a block: LongCat-Video's authors, and the repacked checkpoints; keys and values are stacked in this order.
#[rustfmt::skip]
const LONG_CAT_BLOCK: &[(&str, &[&str])] = &[
    ("adaLN_modulation.1.weight", &["modulation.1.weight"]),
    ("adaLN_modulation.1.bias", &["modulation.1.bias"]),
    ("attn.qkv.weight", &["self_attn.q.weight", "self_attn.k.weight", "self_attn.v.weight"]),
    ("attn.qkv.bias", &["self_attn.q.bias", "self_attn.k.bias", "self_attn.v.bias"]),
    ("attn.proj.weight", &["self_attn.o.weight"]),
    ("attn.proj.bias", &["self_attn.o.bias"]),
    ("pre_crs_attn_norm.weight", &["norm3.weight"]),
    ("pre_crs_attn_norm.bias", &["norm3.bias"]),
    ("cross_attn.q_linear.weight", &["cross_attn.q.weight"]),
    ("cross_attn.q_linear.bias", &["cross_attn.q.bias"]),
    ("cross_attn.kv_linear.weight", &["cross_attn.k.weight", "cross_attn.v.weight"]),
    ("cross_attn.kv_linear.bias", &["cross_attn.k.bias", "cross_attn.v.bias"]),
    ("cross_attn.proj.weight", &["cross_attn.o.weight"]),
    ("cross_attn.proj.bias", &["cross_attn.o.bias"]),
    ("attn.q_norm.weight", &["self_attn.norm_q.weight"]),
    ("attn.k_norm.weight", &["self_attn.norm_k.weight"]),
    ("cross_attn.q_norm.weight", &["cross_attn.norm_q.weight"]),
    ("cross_attn.k_norm.weight", &["cross_attn.norm_k.weight"]),
    ("ffn.w1.weight", &["ffn.w1.weight"]),
    ("ffn.w2.weight", &["ffn.w2.weight"]),
    ("ffn.w3.weight", &["ffn.w3.weight"]),
];

/// Outside the blocks: LongCat-Video's authors, and the repacked checkpoints.
const LONG_CAT_ROOT: &[(&str, &str)] = &[
    ("x_embedder.proj.weight", "patch_embedding.weight"),
    ("x_embedder.proj.bias", "patch_embedding.bias"),
    ("t_embedder.mlp.0.weight", "time_embedding.mlp.0.weight"),
    ("t_embedder.mlp.0.bias", "time_embedding.mlp.0.bias"),
    ("t_embedder.mlp.2.weight", "time_embedding.mlp.2.weight"),
    ("t_embedder.mlp.2.bias", "time_embedding.mlp.2.bias"),
    ("y_embedder.y_proj.0.weight", "text_embedding.0.weight"),
    ("y_embedder.y_proj.0.bias", "text_embedding.0.bias"),
    ("y_embedder.y_proj.2.weight", "text_embedding.2.weight"),
    ("y_embedder.y_proj.2.bias", "text_embedding.2.bias"),
    ("final_layer.linear.weight", "head.head.weight"),
    ("final_layer.linear.bias", "head.head.bias"),
    (
        "final_layer.adaLN_modulation.1.weight",
        "head.modulation.1.weight",
    ),
    (
        "final_layer.adaLN_modulation.1.bias",
        "head.modulation.1.bias",
    ),
];

/// `name` is read as the tensors `canonical` of `place`, and each of them is written as its part of `name`.
#[track_caller]
fn is_read_and_written(convention: &Convention, name: &str, place: Place, canonical: &[&str]) {
    let meaning = convention.meaning(name);
    assert!(meaning.known, "{name}");
    assert_eq!(meaning.place, place, "{name}");
    assert_eq!(meaning.names, canonical, "{name}");
    for (nth, canonical) in canonical.iter().enumerate() {
        let written = convention
            .file_name(place, canonical)
            .expect("has such a tensor");
        assert_eq!(written.name, name, "{canonical}");
        assert_eq!(written.part.0, nth, "{canonical}");
    }
}

#[test]
fn a_block_of_wan_is_called_as_in_published_checkpoints() {
    assert_eq!(BLOCK.len(), 27 + 5);
    for (list, blocks, more) in [
        (List::Main, "blocks.7.", &[][..]),
        (List::Vace, "vace_blocks.7.", VACE),
    ] {
        let place = Place::Block(list, 7);
        for (native, diffusers) in BLOCK.iter().chain(more) {
            let named = |rest: &str| format!("{blocks}{rest}");
            is_read_and_written(&WAN_NATIVE, &named(native), place, &[native]);
            is_read_and_written(&WAN_DIFFUSERS, &named(diffusers), place, &[native]);
        }
    }
}

#[test]
fn what_is_outside_the_blocks_of_wan_is_called_as_in_published_checkpoints() {
    for (native, diffusers) in ROOT {
        is_read_and_written(&WAN_NATIVE, native, Place::Root, &[native]);
        is_read_and_written(&WAN_DIFFUSERS, diffusers, Place::Root, &[native]);
    }
}

#[test]
fn a_fuser_block_is_called_as_in_published_checkpoints() {
    let place = Place::Block(List::Fuser, 7);
    for (canonical, native, diffusers) in [
        ("linear1_q", "linear1_q", "to_q"),
        ("linear2", "linear2", "to_out"),
    ] {
        for leaf in ["weight", "bias"] {
            let canonical = format!("{canonical}.{leaf}");
            let name = format!("face_adapter.fuser_blocks.7.{native}.{leaf}");
            is_read_and_written(&WAN_NATIVE, &name, place, &[&canonical]);
            let name = format!("face_adapter.7.{diffusers}.{leaf}");
            is_read_and_written(&WAN_DIFFUSERS, &name, place, &[&canonical]);
        }
    }
    for leaf in ["weight", "bias"] {
        let [key, value] = ["k", "v"].map(|which| format!("linear1_{which}.{leaf}"));
        let name = format!("face_adapter.fuser_blocks.7.linear1_kv.{leaf}");
        is_read_and_written(&WAN_NATIVE, &name, place, &[&key, &value]);
        let name = format!("face_adapter.7.to_k.{leaf}");
        is_read_and_written(&WAN_DIFFUSERS, &name, place, &[&key]);
        let name = format!("face_adapter.7.to_v.{leaf}");
        is_read_and_written(&WAN_DIFFUSERS, &name, place, &[&value]);
    }
    for (native, diffusers) in [
        ("q_norm.weight", "norm_q.weight"),
        ("k_norm.weight", "norm_k.weight"),
    ] {
        let name = format!("face_adapter.fuser_blocks.7.{native}");
        is_read_and_written(&WAN_NATIVE, &name, place, &[native]);
        let name = format!("face_adapter.7.{diffusers}");
        is_read_and_written(&WAN_DIFFUSERS, &name, place, &[native]);
    }
}

#[test]
fn long_cat_video_is_called_as_in_published_checkpoints() {
    assert_eq!((LONG_CAT_BLOCK.len(), LONG_CAT_ROOT.len()), (21, 14));
    let place = Place::Block(List::Main, 47);
    for (native, repacked) in LONG_CAT_BLOCK {
        let name = format!("blocks.47.{native}");
        is_read_and_written(&LONG_CAT_NATIVE, &name, place, repacked);
        for canonical in *repacked {
            let name = format!("blocks.47.{canonical}");
            is_read_and_written(&LONG_CAT_REPACKED, &name, place, &[canonical]);
        }
    }
    for (native, repacked) in LONG_CAT_ROOT {
        is_read_and_written(&LONG_CAT_NATIVE, native, Place::Root, &[repacked]);
        is_read_and_written(&LONG_CAT_REPACKED, repacked, Place::Root, &[repacked]);
    }
}
