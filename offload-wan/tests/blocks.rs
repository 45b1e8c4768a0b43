//! Which blocks a checkpoint makes, and which checkpoints make none.

mod support;

use offload_core::model::{Model, Residency};
use offload_core::swappable::{Role, Swappable};
use offload_wan::{Checkpoint, CheckpointError, Finding, Findings, LayoutError};
use support::{Recorded, Shaped, specs};

fn model(tensors: &[Shaped]) -> Result<Model, LayoutError> {
    Checkpoint::from_tensors(specs(tensors))
        .expect("names are unique")
        .model()
}

fn bytes(block: &dyn Swappable) -> u64 {
    let bytes = block.tensors().iter().map(|tensor| tensor.source().len());
    bytes.sum()
}

#[test]
fn supported_checkpoints_become_blocks_in_the_order_of_use() {
    for (file, block_count, per_block, image) in [
        ("native.wan2.1-t2v-1.3b", 30, 27, false),
        ("native.wan2.1-t2v-14b", 40, 27, false),
        ("native.wan2.1-i2v-14b", 40, 32, true),
        ("native.wan2.1-flf2v-14b", 40, 32, true),
        ("native.wan2.2-t2v-a14b", 40, 27, false),
        ("native.wan2.2-i2v-a14b", 40, 27, false),
        ("native.wan2.2-ti2v-5b", 30, 27, false),
        ("diffusers.wan2.1-t2v-14b", 40, 27, false),
        ("diffusers.wan2.1-i2v-14b", 40, 32, true),
        ("diffusers.wan2.1-flf2v-14b", 40, 32, true),
        ("diffusers.wan2.2-ti2v-5b", 30, 27, false),
    ] {
        let recorded = Recorded::read(file);
        let tensors = recorded.tensors();
        let model = model(&tensors).unwrap_or_else(|error| panic!("{file}: {error}"));
        let mut expected: Vec<String> = [
            "patch_embedding",
            "text_embedding",
            "time_embedding",
            "time_projection",
        ]
        .map(str::to_owned)
        .to_vec();
        if image {
            expected.push("img_emb".to_owned());
        }
        expected.extend((0..block_count).map(|index| format!("blocks.{index}")));
        expected.push("head".to_owned());
        let names: Vec<&str> = model.blocks().iter().map(|block| block.name()).collect();
        assert_eq!(names, expected, "{file}");

        let count: usize = model.blocks().iter().map(|b| b.tensors().len()).sum();
        assert_eq!(count, recorded.tensor_count, "{file}");
        for (index, block) in model.blocks().iter().enumerate() {
            let planned = block.name().starts_with("blocks.");
            let residency = if planned {
                assert_eq!(block.tensors().len(), per_block, "{file}");
                Residency::Planned
            } else {
                Residency::Always
            };
            assert_eq!(model.residency(index), residency, "{file}");
        }
        let total: u64 = model.blocks().iter().map(|b| bytes(b.as_ref())).sum();
        let recorded: u64 = tensors
            .iter()
            .map(|(_, shape)| shape.iter().product::<u64>() * 2)
            .sum();
        assert_eq!(total, recorded, "{file}");
    }
}

#[test]
fn both_conventions_give_the_same_names_shapes_and_roles() {
    let native = model(&Recorded::read("native.wan2.1-flf2v-14b").tensors()).unwrap();
    let diffusers = model(&Recorded::read("diffusers.wan2.1-flf2v-14b").tensors()).unwrap();
    for (a, b) in native.blocks().iter().zip(diffusers.blocks()) {
        assert_eq!(a.name(), b.name());
        let describe = |block: &dyn Swappable| {
            let mut all: Vec<_> = block
                .tensors()
                .iter()
                .map(|t| (t.name().to_owned(), t.shape().to_vec(), t.role()))
                .collect();
            all.sort_by(|a, b| a.0.cmp(&b.0));
            all
        };
        assert_eq!(describe(a.as_ref()), describe(b.as_ref()));
    }
}

#[test]
fn matrices_are_matrices_and_everything_else_is_a_vector() {
    let model = model(&Recorded::read("native.wan2.1-i2v-14b").tensors()).unwrap();
    for block in model.blocks() {
        for tensor in block.tensors() {
            let name = tensor.name();
            let is_table = name == "modulation" || name.ends_with("bias") || name.contains("norm");
            let is_layer_norm = block.name() == "img_emb"
                && (name.starts_with("proj.0.") || name.starts_with("proj.4."));
            let role = if is_table || is_layer_norm {
                Role::Vector
            } else {
                Role::Matrix
            };
            assert_eq!(tensor.role(), role, "{}.{name}", block.name());
        }
    }
}

#[test]
fn tensors_keep_the_order_of_the_file() {
    let tensors = Recorded::read("native.wan2.1-t2v-1.3b").tensors();
    let model = model(&tensors).unwrap();
    let block = model
        .blocks()
        .iter()
        .find(|b| b.name() == "blocks.7")
        .unwrap();
    let names: Vec<&str> = block.tensors().iter().map(|t| t.name()).collect();
    let in_file: Vec<&str> = tensors
        .iter()
        .filter_map(|(name, _)| name.strip_prefix("blocks.7."))
        .collect();
    assert_eq!(names, in_file);
}

#[test]
fn unknown_tensors_become_the_block_other_and_extras_stay_in_their_block() {
    let mut tensors = Recorded::read("native.wan2.1-t2v-1.3b").tensors();
    tensors.push(("blocks.3.self_attn.q.scale_weight".to_owned(), vec![1]));
    tensors.push(("lora.down.weight".to_owned(), vec![8, 8]));
    tensors.push(("control_blocks.2.conv.weight".to_owned(), vec![8, 8]));
    tensors.push(("scaled_fp8".to_owned(), vec![2]));
    let checkpoint = Checkpoint::from_tensors(specs(&tensors)).unwrap();
    let model = checkpoint.model().unwrap();
    let find = |name: &str| model.blocks().iter().position(|b| b.name() == name);
    let other = find("other").unwrap();
    assert_eq!(model.residency(other), Residency::Always);
    let names: Vec<&str> = model.blocks()[other]
        .tensors()
        .iter()
        .map(|t| t.name())
        .collect();
    assert_eq!(
        names,
        [
            "lora.down.weight",
            "control_blocks.2.conv.weight",
            "scaled_fp8"
        ]
    );
    assert_eq!(checkpoint.unknown().len(), 2);
    assert!(
        checkpoint
            .findings()
            .iter()
            .all(|finding| !finding.is_fatal())
    );
    let block = &model.blocks()[find("blocks.3").unwrap()];
    assert_eq!(block.tensors().len(), 28);
    let count: usize = model.blocks().iter().map(|b| b.tensors().len()).sum();
    assert_eq!(count, tensors.len());
}

/// The findings that a model is refused for.
#[track_caller]
fn refused(tensors: &[Shaped]) -> Vec<Finding> {
    match model(tensors) {
        Err(LayoutError::Incomplete { findings }) => findings.0,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_gap_between_blocks_is_named() {
    let recorded = Recorded::read("native.wan2.1-t2v-1.3b").tensors();
    let mut tensors = recorded.clone();
    tensors.retain(|(name, _)| !name.starts_with("blocks.17."));
    assert_eq!(
        refused(&tensors),
        [Finding::MissingBlock {
            block: "blocks.17".to_owned(),
            block_count: 29,
            highest: 29,
            expected: 30
        }]
    );
    let mut tensors = recorded.clone();
    tensors.retain(|(name, _)| !name.starts_with("blocks."));
    let findings = refused(&tensors);
    assert_eq!(findings[0].name(), "blocks.0");
}

#[test]
fn an_absurd_block_number_costs_an_error_and_no_memory() {
    for (number, highest) in [
        ("4000000000", 4_000_000_000),
        ("99999999999999999999999", u64::MAX),
    ] {
        let mut tensors = Recorded::read("native.wan2.1-t2v-1.3b").tensors();
        tensors.push((format!("blocks.{number}.modulation"), vec![1, 6, 1536]));
        let findings = refused(&tensors);
        assert_eq!(
            findings[0],
            Finding::MissingBlock {
                block: "blocks.30".to_owned(),
                block_count: 31,
                highest,
                expected: highest.saturating_add(1)
            }
        );
        let checkpoint = Checkpoint::from_tensors(specs(&tensors)).unwrap();
        assert_eq!(checkpoint.blocks().len(), 31);
    }
}

#[test]
fn a_tensor_of_two_shards_is_an_error() {
    let twice = [
        ("head.modulation".to_owned(), vec![1, 2, 8]),
        ("head.modulation".to_owned(), vec![1, 2, 8]),
    ];
    let error = Checkpoint::from_tensors(specs(&twice)).unwrap_err();
    assert!(
        matches!(&error, CheckpointError::DuplicateTensor { name, .. } if name == "head.modulation"),
        "{error}"
    );
    assert!(matches!(
        Checkpoint::open_all(Vec::<std::path::PathBuf>::new()),
        Err(CheckpointError::NoFiles)
    ));
}

#[test]
fn two_spellings_of_one_tensor_are_a_finding() {
    let mut tensors = Recorded::read("native.wan2.1-t2v-1.3b").tensors();
    let mut prefixed: Vec<Shaped> = tensors
        .iter()
        .map(|(name, shape)| (format!("net.{name}"), shape.clone()))
        .collect();
    let again = tensors.swap_remove(0);
    prefixed.push(again.clone());
    let expected = [Finding::Repeated {
        tensor: again.0.clone(),
        first: format!("net.{}", again.0),
    }];
    let checkpoint = Checkpoint::from_tensors(specs(&prefixed)).unwrap();
    assert_eq!(checkpoint.findings(), expected);
    let error = model(&prefixed).unwrap_err();
    let findings = Findings(expected.to_vec());
    assert_eq!(error, LayoutError::Incomplete { findings });
}

#[test]
fn numbered_blocks_of_any_list_are_summed() {
    let tensors = Recorded::read("native.wan2.1-vace-1.3b").tensors();
    let checkpoint = Checkpoint::from_tensors(specs(&tensors)).unwrap();
    let blocks = checkpoint.blocks();
    assert_eq!(blocks.len(), 45);
    assert_eq!(blocks[10].name, "blocks.10");
    assert_eq!(blocks[30].name, "vace_blocks.0");
    assert_eq!(blocks[30].tensor_count, 31);
    assert_eq!(blocks[31].tensor_count, 29);
}
