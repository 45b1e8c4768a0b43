//! What the names of files tell where tensors do not.

use std::path::{Component, Path};

use crate::detect::Expert;
use crate::variant::Variant;

/// Words found in file names.
#[derive(Debug, Clone, Default)]
pub(crate) struct Hints {
    /// The name of the file and that of its folder, lower case, each with any separator as a blank: a dot too, unless it
    /// is in a number.
    words: String,
    pub(crate) expert: Option<(Expert, &'static str)>,
    pub(crate) resolution: Option<&'static str>,
}

fn in_words(name: &str) -> String {
    let letters: Vec<char> = name.chars().collect();
    let is_digit = |at: Option<usize>| {
        at.and_then(|at| letters.get(at))
            .is_some_and(char::is_ascii_digit)
    };
    let words = letters.iter().enumerate().map(|(at, letter)| match letter {
        '.' if is_digit(at.checked_sub(1)) && is_digit(Some(at + 1)) => '.',
        '_' | '-' | '/' | '.' => ' ',
        letter => *letter,
    });
    words.collect()
}

const HIGH: [&str; 3] = ["high noise", "highnoise", " high "];
const LOW: [&str; 3] = ["low noise", "lownoise", " low "];

impl Hints {
    /// Those of the names of `paths` and of the folders that hold them.
    pub(crate) fn of<'a>(paths: impl IntoIterator<Item = &'a Path>) -> Self {
        let mut words = String::from(" ");
        for path in paths {
            let parts = path.components().rev().filter_map(|part| match part {
                Component::Normal(part) => Some(part.to_string_lossy().to_lowercase()),
                _ => None,
            });
            for part in parts.take(2) {
                words.push_str(&in_words(&part));
                words.push(' ');
            }
        }
        let found =
            |known: &[&'static str]| known.iter().copied().find(|word| words.contains(word));
        let expert = match (found(&HIGH), found(&LOW)) {
            (Some(word), None) => Some((Expert::High, word.trim())),
            (None, Some(word)) => Some((Expert::Low, word.trim())),
            _ => None,
        };
        let resolution = match (found(&["480p"]), found(&["720p"])) {
            (Some(word), None) | (None, Some(word)) => Some(word),
            _ => None,
        };
        Self {
            words,
            expert,
            resolution,
        }
    }

    /// Which of several variants that fit the words mean, and the word; `None` when they mean none alone.
    pub(crate) fn pick(&self, variants: &[Variant]) -> Option<(usize, &'static str)> {
        let has =
            |known: &[&'static str]| known.iter().copied().find(|word| self.words.contains(word));
        let fun = has(&[" fun "]);
        let release = has(&["2.2", "wan22", "wan2 2", "wan 2 2"])
            .map(|word| (word, "wan2.2"))
            .or_else(|| has(&["2.1", "wan21", "wan2 1", "wan 2 1"]).map(|word| (word, "wan2.1")));
        let expert = self.expert.map(|(_, word)| word);
        let means = |variant: &Variant| {
            let name = variant.name();
            name.contains("-fun-") == fun.is_some()
                && release.is_none_or(|(_, start)| name.starts_with(start))
                && (expert.is_none() || variant.boundary().is_some())
        };
        let word = fun.or(release.map(|(word, _)| word)).or(expert)?.trim();
        let mut meant = variants
            .iter()
            .enumerate()
            .filter(|(_, variant)| means(variant));
        let (index, _) = meant.next()?;
        // One that fits anyway is no choice, and of several that are meant none was.
        (meant.next().is_none() && variants.len() > 1).then_some((index, word))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pick(path: &str, names: &[&str]) -> Option<&'static str> {
        let variants: Vec<Variant> = names
            .iter()
            .map(|name| Variant::from_name(name).unwrap())
            .collect();
        let (index, _) = Hints::of([Path::new(path)]).pick(&variants)?;
        Some(variants[index].name())
    }

    #[test]
    fn file_names_tell_releases_experts_and_fine_tunes_apart() {
        let t2v = &["wan2.1-t2v-14b", "wan2.2-t2v-a14b"];
        for (path, expected) in [
            (
                "wan2.2_t2v_high_noise_14B_Q4_K_M.gguf",
                Some("wan2.2-t2v-a14b"),
            ),
            ("Wan2.1-T2V-14B.safetensors", Some("wan2.1-t2v-14b")),
            (
                "t2v/high_noise_model/model.safetensors",
                Some("wan2.2-t2v-a14b"),
            ),
            ("model.gguf", None),
            ("Wan2.2-Fun-Whatever.gguf", None),
            ("a14b.high.gguf", Some("wan2.2-t2v-a14b")),
            ("wan2.2.gguf", Some("wan2.2-t2v-a14b")),
        ] {
            assert_eq!(pick(path, t2v), expected, "{path}");
        }
        let i2v = &["wan2.2-i2v-a14b", "wan2.2-fun-inp-a14b"];
        assert_eq!(
            pick("Wan2.2-Fun-A14B-InP_low.gguf", i2v),
            Some("wan2.2-fun-inp-a14b")
        );
        assert_eq!(
            pick("wan2.2_i2v_low_noise.gguf", i2v),
            Some("wan2.2-i2v-a14b")
        );
        assert_eq!(pick("wan2.2_t2v.gguf", &["wan2.2-t2v-a14b"]), None);
    }

    #[test]
    fn experts_and_resolutions_are_read_from_words() {
        let of = |path| Hints::of([Path::new(path)]);
        let expert = |path| of(path).expert.map(|(expert, _)| expert);
        assert_eq!(expert("wan2.2_i2v_high_noise_14B.gguf"), Some(Expert::High));
        assert_eq!(
            expert("a/low_noise_model/model.safetensors"),
            Some(Expert::Low)
        );
        assert_eq!(expert("Wan2.2-T2V-HighNoise.gguf"), Some(Expert::High));
        assert_eq!(expert("x_high.gguf"), Some(Expert::High));
        assert_eq!(expert("wan2.2-Low.Q4_K_M.gguf"), Some(Expert::Low));
        assert_eq!(
            expert("t2v.high.noise.safetensors.index.json"),
            Some(Expert::High)
        );
        assert_eq!(expert("highlights.gguf"), None);
        assert_eq!(expert("high_noise/low_noise.gguf"), None);
        assert_eq!(of("wan2.1_i2v_480p_14B.gguf").resolution, Some("480p"));
    }
}
