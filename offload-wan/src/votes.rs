//! Which convention a checkpoint's names follow: the one that has most of them.
//!
//! One name of another convention among a thousand, left by a tool or an adapter, is a stray and no reason to read all
//! others by its rules. So each convention counts the names that its own tables make; the most win, and of as many the
//! one that comes first. Scales do not vote: they stand beside weights that do.

use std::collections::{HashMap, HashSet};
use std::sync::LazyLock;

use crate::layout;
use crate::names::{CONVENTIONS, Convention};

/// Every name that a convention has for a tensor of the family.
#[derive(Debug)]
struct Voter {
    convention: &'static Convention,
    /// Of blocks: by what stands before the number, what comes after it. Of others: under `None`, whole.
    names: HashMap<Option<&'static str>, HashSet<String>>,
}

static VOTERS: LazyLock<Vec<Voter>> = LazyLock::new(|| {
    let voters = CONVENTIONS.iter().map(|&convention| {
        let mut names: HashMap<_, HashSet<String>> = HashMap::new();
        for (place, name) in layout::every_tensor(convention.long_cat) {
            if let Some(file) = convention.file_name(place, name) {
                let (list, rest) = convention.numbered(&file.name);
                names.entry(list).or_default().insert(rest.to_owned());
            }
        }
        Voter { convention, names }
    });
    voters.collect()
});

impl Voter {
    fn has(&self, name: &str) -> bool {
        let name = match name.strip_suffix("_int8") {
            Some(weight) if weight.ends_with("weight") => weight,
            _ => name,
        };
        let (list, rest) = self.convention.numbered(name);
        self.names
            .get(&list)
            .is_some_and(|names| names.contains(rest))
    }
}

/// The convention that has most of `names`, which bear no prefix, and how many it has. The authors' own if none has any.
pub(crate) fn convention<'a>(
    names: impl Iterator<Item = &'a str> + Clone,
) -> (&'static Convention, usize) {
    let counts = VOTERS.iter().map(|voter| {
        let count = names.clone().filter(|name| voter.has(name)).count();
        (voter.convention, count)
    });
    let most = counts.reduce(|best, next| if next.1 > best.1 { next } else { best });
    most.expect("there are conventions")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::Naming;

    fn elected(names: &[&str]) -> (Naming, bool, usize) {
        let (convention, count) = convention(names.iter().copied());
        (convention.naming, convention.long_cat, count)
    }

    #[test]
    fn most_names_decide_and_of_as_many_the_first_convention() {
        let native = "blocks.0.self_attn.q.weight";
        let diffusers = "blocks.0.attn1.to_q.weight";
        assert_eq!(elected(&[]), (Naming::Native, false, 0));
        assert_eq!(elected(&["lora.weight"]), (Naming::Native, false, 0));
        assert_eq!(elected(&[diffusers, native]), (Naming::Native, false, 1));
        assert_eq!(
            elected(&[native, diffusers, "blocks.7.attn1.to_k.bias"]),
            (Naming::Diffusers, false, 2)
        );
        // Repacked LongCat-Video shares names with WAN.
        assert_eq!(
            elected(&[native, "blocks.0.ffn.w1.weight", "blocks.0.norm3.bias"]),
            (Naming::Repacked, true, 3)
        );
        assert_eq!(
            elected(&["blocks.0.attn.qkv.weight_int8", "blocks.0.attn.qkv.bias"]),
            (Naming::Native, true, 2)
        );
    }

    #[test]
    fn a_name_counts_whole() {
        for name in [
            "blocks.0.self_attn.q",
            "blocks.0.block.lora.weight",
            "blocks.00.self_attn.q.weight",
            "vace_blocks.0.attn1.to_qkv.weight",
            "my.blocks.0.self_attn.q.weight",
            "blocks.0.self_attn.q.scale_weight",
        ] {
            assert_eq!(elected(&[name]).2, 0, "{name}");
        }
    }
}
