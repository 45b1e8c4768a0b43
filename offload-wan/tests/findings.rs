//! A checkpoint with one tensor missing, misshapen or unknown is still what it is, and the report names the tensor.

mod support;

use offload_wan::{Checkpoint, Finding, Naming, Recipe, SynthesizeSpec, Variant};
use support::{Recorded, Shaped, described};

fn open(tensors: &[Shaped]) -> Checkpoint {
    Checkpoint::from_tensors(described(tensors)).expect("names are unique")
}

/// Every published variant in each convention that it has, at an eighth of its widths.
fn everything() -> Vec<(Variant, Naming, Vec<Shaped>)> {
    let mut all = Vec::new();
    for &variant in Variant::ALL {
        for &naming in Naming::ALL {
            let spec = SynthesizeSpec {
                naming,
                ..SynthesizeSpec::of_variant(variant, Recipe::BF16, 8, 0).expect("has a size")
            };
            let Ok(tensors) = spec.describe() else {
                assert_ne!(naming, Naming::Native, "{variant}");
                continue;
            };
            let shaped = tensors.iter().map(|tensor| {
                let name = format!("model.diffusion_model.{}", tensor.name());
                (name, tensor.shape().to_vec())
            });
            all.push((variant, naming, shaped.collect()));
        }
    }
    assert_eq!(all.len(), 25 + 16 + 1);
    all
}

/// One tensor of each kind: of the first and last block of each list, and all outside.
fn representatives(tensors: &[Shaped]) -> Vec<usize> {
    let mut seen = std::collections::BTreeSet::new();
    let kind = |name: &str| -> String {
        let parts = name.split('.').map(|part| match part.parse::<u32>() {
            Ok(_) => "{}",
            Err(_) => part,
        });
        parts.collect::<Vec<_>>().join(".")
    };
    (0..tensors.len())
        .filter(|&index| seen.insert(kind(&tensors[index].0)))
        .collect()
}

/// Whether two names may both be said, the older first.
fn is_named(checkpoint: &Checkpoint, variant: Variant) -> bool {
    let detection = checkpoint.detection();
    let named = detection.variant.iter().chain(&detection.alternatives);
    named.copied().any(|found| found == variant)
}

#[test]
fn a_missing_tensor_is_named_and_the_variant_still_told() {
    for (variant, naming, tensors) in everything() {
        assert_eq!(open(&tensors).findings(), [], "{variant} {naming}");
        for index in representatives(&tensors) {
            let mut lacking = tensors.clone();
            let (name, _) = lacking.remove(index);
            let checkpoint = open(&lacking);
            // Without it this is another model, and a whole one: nothing but the file's name could tell.
            if name.ends_with("img_emb.emb_pos") || name.ends_with("pos_embed") {
                assert_eq!(checkpoint.findings(), []);
                let said = checkpoint.taken_for(variant).expect("may be").findings();
                assert_eq!(said[0].name(), name);
                continue;
            }
            let findings = checkpoint.findings();
            assert_eq!(
                findings,
                [Finding::Missing {
                    tensor: name.clone()
                }],
                "{variant} {naming}"
            );
            assert!(
                is_named(&checkpoint, variant),
                "{variant} {naming} without {name}"
            );
            let error = checkpoint.model().expect_err("is not whole").to_string();
            assert!(error.contains(&name), "{error}");
        }
    }
}

#[test]
fn a_misshapen_tensor_is_named_and_no_other() {
    for (variant, naming, tensors) in everything() {
        for index in representatives(&tensors) {
            let mut wrong = tensors.clone();
            let (name, shape) = &mut wrong[index];
            // One more axis: no width explains it.
            shape.insert(0, 2);
            let (name, shape) = (name.clone(), shape.clone());
            let checkpoint = open(&wrong);
            let findings = checkpoint.findings();
            let [
                Finding::Misshapen {
                    tensor,
                    shape: found,
                    ..
                },
            ] = &findings[..]
            else {
                panic!("{variant} {naming} {name}: {findings:?}");
            };
            assert_eq!((tensor, found), (&name, &shape), "{variant} {naming}");
            assert!(
                is_named(&checkpoint, variant),
                "{variant} {naming} with {name}"
            );
            assert!(checkpoint.model().is_err());
        }
    }
}

#[test]
fn an_unknown_tensor_is_named_and_kept() {
    for (variant, naming, mut tensors) in everything() {
        let unknown = [
            "model.diffusion_model.blocks.1.self_attn.lora.weight",
            "model.diffusion_model.head.lora.weight",
            "model.diffusion_model.lora.weight",
            "first_stage_model.conv.weight",
        ];
        for name in unknown {
            tensors.push((name.to_owned(), vec![8]));
        }
        let checkpoint = open(&tensors);
        let mut found = checkpoint.unknown();
        found.sort();
        let mut expected = unknown.map(str::to_owned);
        expected.sort();
        assert_eq!(found, expected, "{variant} {naming}");
        assert!(is_named(&checkpoint, variant), "{variant} {naming}");
        let model = checkpoint.model().expect("is whole all the same");
        let block = model
            .blocks()
            .iter()
            .find(|block| block.name() == "blocks.1");
        let kept = block.expect("is there").tensors().iter();
        assert_eq!(
            kept.filter(|tensor| tensor.name().contains("lora")).count(),
            1
        );
    }
}

#[test]
fn channels_are_more_than_none() {
    let tensors = Recorded::read("native.wan2.1-t2v-1.3b").tensors();
    for (name, axis) in [("patch_embedding.weight", 1), ("head.head.weight", 0)] {
        let mut tensors = tensors.clone();
        let found = tensors.iter_mut().find(|(tensor, _)| tensor == name);
        found.expect("is there").1[axis] = 0;
        let findings = open(&tensors).findings();
        let [finding @ Finding::Misshapen { .. }] = &findings[..] else {
            panic!("{findings:?}");
        };
        assert_eq!(finding.name(), name);
    }
}

#[test]
fn all_findings_come_at_once() {
    let (_, _, mut tensors) = everything().swap_remove(0);
    tensors
        .retain(|(name, _)| !name.contains("blocks.3.ffn") && !name.contains("text_embedding.2"));
    tensors[7].1 = vec![3];
    tensors.push(("model.diffusion_model.extra".to_owned(), vec![1]));
    let checkpoint = open(&tensors);
    let findings = checkpoint.findings();
    assert_eq!(findings.len(), 4 + 2 + 1 + 1, "{findings:?}");
    let error = checkpoint.model().expect_err("is not whole").to_string();
    assert!(error.contains("and 2 more"), "{error}");
    assert_eq!(error.lines().count(), 1);
}

#[test]
fn missing_vace_blocks_are_missed() {
    let (_, _, tensors) = everything()
        .into_iter()
        .find(|(variant, ..)| variant.name() == "wan2.1-vace-14b")
        .expect("is published");
    // Those that are there are sound all the same, also where no published size tells how many there should be.
    let few = sized("wan2.1-vace-14b", 12, 640, 1728);
    for (tensors, lost, first) in [
        (&tensors, "vace_blocks.7.", "vace_blocks.7"),
        (&tensors, "vace_blocks.3.", "vace_blocks.3"),
        (&tensors, "vace_blocks.0.", "vace_blocks.0"),
        (&tensors, "vace_blocks.", "vace_blocks.0"),
        (&few, "vace_blocks.1.", "vace_blocks.1"),
        (&few, "vace_blocks.", "vace_blocks.0"),
    ] {
        let mut lacking = tensors.clone();
        lacking.retain(|(name, _)| !name.contains(lost));
        let findings = open(&lacking).findings();
        let names: Vec<&str> = findings.iter().map(Finding::name).collect();
        assert_eq!(names, [first], "{findings:?}");
        assert!(matches!(findings[0], Finding::MissingBlock { .. }));
        assert!(open(&lacking).model().is_err());
    }
}

#[test]
fn published_widths_leave_no_number_open() {
    let variant = Variant::from_name("wan2.1-t2v-1.3b").unwrap();
    let spec = SynthesizeSpec::of_variant(variant, Recipe::BF16, 1, 0).unwrap();
    let tensors = spec.describe().unwrap();
    let mut shaped: Vec<Shaped> = tensors
        .iter()
        .map(|tensor| (tensor.name().to_owned(), tensor.shape().to_vec()))
        .collect();
    let text = shaped
        .iter_mut()
        .find(|(name, _)| name == "text_embedding.0.weight")
        .unwrap();
    text.1[1] = 4097;
    let wider = Finding::Misshapen {
        tensor: "text_embedding.0.weight".to_owned(),
        shape: vec![1536, 4097],
        expected: "[1536, 4096]".to_owned(),
    };
    assert_eq!(open(&shaped).findings(), std::slice::from_ref(&wider));
    // They are those of a published model without its last block, too.
    shaped.retain(|(name, _)| !name.starts_with("blocks.29."));
    let findings = open(&shaped).findings();
    assert_eq!((findings.len(), findings[0].name()), (2, "blocks.29"));
    assert_eq!(findings[1], wider);
}

#[test]
fn what_was_decided_says_by_what() {
    let (variant, _, tensors) = everything().swap_remove(0);
    let checkpoint = open(&tensors);
    let decision = |checkpoint: &Checkpoint, what: &str| {
        let decided = checkpoint.detection().decided_by.iter();
        let found = decided.clone().find(|decision| decision.what == what);
        found.map(|decision| format!("{} by {}", decision.value, decision.by))
    };
    assert_eq!(
        decision(&checkpoint, "prefix").unwrap(),
        "model.diffusion_model. by 825 names begin with it"
    );
    assert_eq!(
        decision(&checkpoint, "variant").unwrap(),
        "wan2.1-t2v-1.3b by 16 channels in, 30 blocks"
    );
    let taken = checkpoint.taken_for(Variant::from_name("wan2.1-vace-1.3b").unwrap());
    let taken = taken.expect("may be");
    assert_eq!(
        decision(&taken, "variant").unwrap(),
        "wan2.1-vace-1.3b by the caller"
    );
    assert!(
        taken
            .findings()
            .iter()
            .any(|finding| finding.name().contains("vace_patch_embedding"))
    );
    assert_ne!(taken.detection().variant, Some(variant));
}

#[test]
fn one_name_of_another_convention_is_a_stray_and_decides_nothing() {
    let strays = [
        "blocks.0.self_attn.q.scale_weight.old",
        "blocks.0.attn1.to_q.weight",
        "blocks.0.scale_shift_table",
        "condition_embedder.time_proj.weight",
        "blocks.0.block.norm3.bias",
        "x_embedder.proj.weight",
        "final_layer.linear.bias",
        "blocks.0.attn.qkv.weight",
        "blocks.0.adaLN_modulation.1.bias",
        "blocks.0.modulation.1.weight",
        "blocks.0.self_attn.q.weight",
        "blocks.0.modulation",
        "head.modulation",
    ];
    for (variant, naming, tensors) in everything() {
        let sound = open(&tensors);
        for stray in strays {
            let stray = format!("model.diffusion_model.{stray}");
            if tensors.iter().any(|(name, _)| *name == stray) {
                continue;
            }
            let mut with = tensors.clone();
            // First, where a reader that takes the first hint meets it.
            with.insert(0, (stray.clone(), vec![8]));
            let checkpoint = open(&with);
            let found = checkpoint.detection();
            assert_eq!(found.naming, Some(naming), "{variant} with {stray}");
            assert_eq!(found.variant, sound.detection().variant, "{stray}");
            assert_eq!(
                checkpoint.findings(),
                [Finding::Unknown { tensor: stray }],
                "{variant} {naming}"
            );
            assert!(checkpoint.model().is_ok());
        }
    }
}

fn named(name: &str) -> Variant {
    Variant::from_name(name).expect("is published")
}

/// `variant` with `block_count` blocks and these widths.
fn sized(variant: &str, block_count: u64, dim: u64, ffn_dim: u64) -> Vec<Shaped> {
    let spec = SynthesizeSpec {
        family: named(variant).family(),
        block_count,
        dim,
        ffn_dim,
        recipe: Recipe::BF16,
        ..SynthesizeSpec::default()
    };
    let tensors = spec.describe().expect("widths fit");
    let shaped = tensors
        .iter()
        .map(|tensor| (tensor.name().to_owned(), tensor.shape().to_vec()));
    shaped.collect()
}

#[test]
fn blocks_missing_at_the_end_are_missed_in_every_variant() {
    for (variant, naming, tensors) in everything() {
        let lists = ["blocks.", "vace_blocks."];
        let whole = variant.counts().expect("has a size");
        for (list, count) in lists.into_iter().zip([whole.blocks, whole.vace_blocks]) {
            if count == 0 {
                continue;
            }
            for lost in [1, 3] {
                let mut lacking = tensors.clone();
                for index in count - lost..count {
                    let start = format!("model.diffusion_model.{list}{index}.");
                    lacking.retain(|(name, _)| !name.starts_with(&start));
                }
                let checkpoint = open(&lacking);
                let what = format!("{variant} {naming} without {lost} of {list}");
                assert!(is_named(&checkpoint, variant), "{what}");
                let missing = Finding::MissingBlock {
                    block: format!("{list}{}", count - lost),
                    block_count: count - lost,
                    highest: count - lost - 1,
                    expected: count,
                };
                assert_eq!(checkpoint.findings(), [missing], "{what}");
                assert!(checkpoint.model().is_err(), "{what}");
                let said = checkpoint.taken_for(variant).expect("may be");
                assert_eq!(said.findings().len(), 1, "{what}");
            }
        }
    }
}

#[test]
fn a_checkpoint_with_half_of_the_blocks_or_fewer_is_of_a_size_of_its_own() {
    // Of published widths, too: two blocks of it are a fair test.
    for (count, dim, ffn_dim, expected) in [
        (2, 5120, 13824, None),
        (20, 5120, 13824, None),
        (21, 5120, 13824, Some(40)),
        (39, 5120, 13824, Some(40)),
        (41, 5120, 13824, None),
        (31, 1536, 8960, None),
        (16, 1536, 8960, Some(30)),
        (30, 5120, 13824, Some(40)),
        (30, 640, 1728, Some(30)),
        (31, 640, 1728, Some(40)),
        (15, 640, 1728, None),
        // Widths of no published model.
        (32, 2048, 8192, None),
        (39, 1024, 4096, None),
    ] {
        let checkpoint = open(&sized("wan2.1-t2v-14b", count, dim, ffn_dim));
        let variant = checkpoint.detection().variant.expect("is known");
        let size = variant.size().map(|size| size.block_count);
        assert_eq!(size, expected, "{count} blocks of width {dim}");
        let is_whole = expected.is_none_or(|expected| expected == count);
        assert_eq!(checkpoint.model().is_ok(), is_whole, "{count} of {dim}");
    }
}

#[test]
fn what_a_checkpoint_is_taken_for_it_is_held_to() {
    let taken = |tensors: &[Shaped], variant: &str| {
        let checkpoint = open(tensors).taken_for(named(variant)).expect("may be");
        let text = |finding: &Finding| finding.to_string();
        let findings: Vec<String> = checkpoint.findings().iter().map(text).collect();
        assert_eq!(checkpoint.model().is_err(), !findings.is_empty());
        findings
    };
    // Itself, at any scale.
    for scale in [1, 3, 128] {
        for &variant in Variant::ALL {
            let spec = SynthesizeSpec::of_variant(variant, Recipe::Q4KM, scale, 0);
            let tensors = spec.expect("has a size").describe().expect("widths fit");
            let checkpoint = Checkpoint::from_tensors(tensors).expect("names are unique");
            let checkpoint = checkpoint.taken_for(variant).expect("is");
            assert_eq!(checkpoint.findings(), [], "{variant} over {scale}");
        }
    }
    // Fewer and more blocks.
    let few = taken(&sized("wan2.1-t2v-14b", 6, 640, 1728), "wan2.1-t2v-14b");
    assert_eq!(
        few,
        ["blocks.6 is missing: the checkpoint has 6 of 40 such blocks, the highest is 5"]
    );
    let more = taken(&sized("wan2.1-t2v-14b", 42, 640, 1728), "wan2.1-t2v-14b");
    assert_eq!(
        more,
        ["blocks.40 is one too many: the checkpoint has 42 such blocks, expected 40"]
    );
    // Widths that are no scaled ones, and larger ones.
    for (dim, ffn_dim) in [(640, 640), (640, 2816), (6144, 13824), (5120, 13568)] {
        let found = taken(
            &sized("wan2.1-t2v-14b", 40, dim, ffn_dim),
            "wan2.2-t2v-a14b",
        );
        assert_eq!(
            found,
            [format!(
                "tensor blocks.0.ffn.0.weight has shape [{ffn_dim}, {dim}], expected [13824, 5120] of \
                 wan2.2-t2v-a14b, or both divided by one number"
            )]
        );
    }
    // Channels.
    let found = taken(
        &sized("wan2.1-t2v-14b", 40, 640, 1728),
        "wan2.2-fun-inp-a14b",
    );
    assert_eq!(
        found,
        ["tensor patch_embedding.weight has shape [640, 16, 1, 2, 2], expected [640, 36, 1, 2, 2]"]
    );
    // Names: what one has and the other has not.
    let t2v = sized("wan2.1-t2v-14b", 40, 640, 1728);
    let i2v = taken(&t2v, "wan2.1-i2v-14b");
    assert_eq!(i2v.len(), 1 + 8 + 40 * 5);
    let vace = taken(&t2v, "wan2.1-vace-14b");
    assert_eq!(vace.len(), 2 + 1, "{vace:?}");
    assert_eq!(
        vace[0],
        "vace_blocks.0 is missing: the checkpoint has none of 8 such blocks"
    );
    // VACE blocks, as many as it has.
    let vace = sized("wan2.1-vace-14b", 40, 640, 1728);
    let mut lacking = vace.clone();
    lacking.retain(|(name, _)| !name.starts_with("vace_blocks.7."));
    assert_eq!(
        taken(&lacking, "wan2.2-vace-fun-a14b"),
        ["vace_blocks.7 is missing: the checkpoint has 7 of 8 such blocks, the highest is 6"]
    );
}

#[test]
fn what_a_checkpoint_plainly_is_not_it_is_not_taken_for() {
    let refused = |tensors: &[Shaped], variant: &str| {
        let error = open(tensors).taken_for(named(variant));
        error.expect_err("is another").to_string()
    };
    let (small, large) = ((30, 1536, 8960), (40, 5120, 13824));
    let of = |(count, dim, ffn_dim)| sized("wan2.1-t2v-14b", count, dim, ffn_dim);
    assert_eq!(
        refused(&of(small), "wan2.1-t2v-14b"),
        "the checkpoint cannot be taken for wan2.1-t2v-14b: it is wan2.1-t2v-1.3b of 30 blocks of width 1536, \
         feed-forward 8960, where wan2.1-t2v-14b has 40 blocks of width 5120, feed-forward 13824"
    );
    let error = refused(&of(large), "wan2.1-t2v-1.3b");
    assert!(
        error.contains("wan2.1-t2v-1.3b: it is wan2.1-t2v-14b"),
        "{error}"
    );
    // Scaled ones tell by their blocks, a part of one by its widths.
    for (tensors, variant) in [
        (of((30, 192, 1120)), "wan2.1-t2v-14b"),
        (of((40, 192, 1120)), "wan2.1-t2v-1.3b"),
        (of((2, 5120, 13824)), "wan2.1-t2v-1.3b"),
        (of((39, 5120, 13824)), "wan2.1-t2v-1.3b"),
        (of(small), "wan2.2-ti2v-5b"),
        (of(large), "longcat-video"),
        (sized("longcat-video", 48, 4096, 11008), "wan2.1-t2v-14b"),
    ] {
        let error = refused(&tensors, variant);
        assert!(error.contains(variant), "{error}");
    }
    // It does not matter what it was taken for before.
    let large = open(&of(large)).taken_for(named("wan2.2-t2v-a14b"));
    let large = large.expect("may be");
    assert!(large.clone().taken_for(named("wan2.1-t2v-1.3b")).is_err());
    assert!(large.taken_for(named("wan2.1-t2v-14b")).is_ok());
    let other = [("output.weight".to_owned(), vec![8])];
    let error = refused(&other, "wan2.1-t2v-14b");
    assert!(error.ends_with("it is no WAN transformer"), "{error}");
}
