//! A checkpoint's tensors by part: block lists, tensors outside the blocks, tensors of other models.
//!
//! Nothing is checked here and nothing is sized by a number read from a name.

use std::collections::BTreeMap;

use offload_core::swappable::TensorSpec;

use crate::layout::rows;
use crate::names::{self, Convention, List, Place, SCALED_FLAG};
use crate::votes;

/// A tensor under its canonical name within its place.
#[derive(Debug)]
pub(crate) struct Named<'a> {
    pub(crate) name: String,
    /// Its own rows, if the file stacks several; under its name in the file.
    pub(crate) spec: TensorSpec,
    /// As the file has it, and of how many parts.
    pub(crate) file: &'a TensorSpec,
    pub(crate) parts: usize,
    /// Whether its name means something in the checkpoint's convention.
    pub(crate) known: bool,
}

/// How a checkpoint names its tensors.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Style {
    pub(crate) prefix: &'static str,
    /// How many names carry the prefix.
    pub(crate) prefixed: usize,
    pub(crate) convention: &'static Convention,
    /// How many names the convention has, and of how many.
    pub(crate) votes: (usize, usize),
}

impl Style {
    pub(crate) fn of(tensors: &[TensorSpec]) -> Self {
        let (prefix, prefixed) = names::common_prefix(tensors.iter().map(TensorSpec::name));
        let stripped = |spec| names::without_prefix(TensorSpec::name(spec), prefix);
        let names = tensors.iter().filter_map(stripped);
        let (convention, votes) = votes::convention(names.clone());
        Self {
            prefix,
            prefixed,
            convention,
            votes: (votes, names.count()),
        }
    }
}

/// Tensors by part, each part in file order.
#[derive(Debug)]
pub(crate) struct Catalog<'a> {
    pub(crate) style: Style,
    pub(crate) places: BTreeMap<Place, Vec<Named<'a>>>,
    /// Tensors without the prefix.
    pub(crate) outside: Vec<&'a TensorSpec>,
}

impl<'a> Catalog<'a> {
    pub(crate) fn new(tensors: &'a [TensorSpec], style: Style) -> Self {
        let mut catalog = Self {
            style,
            places: BTreeMap::new(),
            outside: Vec::new(),
        };
        for spec in tensors {
            match names::without_prefix(spec.name(), style.prefix) {
                Some(name) => catalog.add(name, spec),
                None => catalog.outside.push(spec),
            }
        }
        catalog
    }

    fn add(&mut self, name: &str, spec: &'a TensorSpec) {
        let meaning = self.style.convention.meaning(name);
        let parts = meaning.names.len();
        let place = self.places.entry(meaning.place).or_default();
        for (nth, name) in meaning.names.into_iter().enumerate() {
            // Numbers that all parts share, such as the scale of a whole tensor, are not taken apart.
            let is_shared = names::attached_to(&name).is_some() && spec.element_count() == 1
                || name.ends_with(".comfy_quant");
            let own = match parts {
                1 => Some(spec.clone()),
                _ if is_shared => Some(spec.clone()),
                _ => rows(spec, nth, parts),
            };
            place.push(Named {
                known: meaning.known || name == SCALED_FLAG,
                name,
                // What does not come apart is a finding, and is shown as it is.
                spec: own.unwrap_or_else(|| spec.clone()),
                file: spec,
                parts,
            });
        }
    }

    /// Blocks of a list by number.
    pub(crate) fn list(&self, list: List) -> impl Iterator<Item = (u64, &[Named<'a>])> {
        let range = Place::Block(list, 0)..=Place::Block(list, u64::MAX);
        self.places
            .range(range)
            .map(|(place, tensors)| match place {
                Place::Block(_, index) => (*index, tensors.as_slice()),
                Place::Root => unreachable!("the range holds blocks"),
            })
    }

    /// The tensors of a place.
    pub(crate) fn place(&self, place: Place) -> &[Named<'a>] {
        self.places.get(&place).map_or(&[], Vec::as_slice)
    }

    /// The tensors outside the blocks.
    pub(crate) fn root(&self) -> &[Named<'a>] {
        self.place(Place::Root)
    }

    /// Whether a tensor outside the blocks is of module `module`.
    pub(crate) fn has_module(&self, module: &str) -> bool {
        let is_of = |name: &str| {
            name.strip_prefix(module)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        };
        self.root().iter().any(|tensor| is_of(&tensor.name))
    }

    /// Tensor `name` of the main block with the smallest number.
    pub(crate) fn first_block(&self, name: &str) -> Option<&TensorSpec> {
        let (_, tensors) = self.list(List::Main).next()?;
        find(tensors, name)
    }

    /// Tensor `name` outside the blocks.
    pub(crate) fn root_tensor(&self, name: &str) -> Option<&TensorSpec> {
        find(self.root(), name)
    }
}

/// The tensor called `name`.
pub(crate) fn find<'t>(tensors: &'t [Named<'_>], name: &str) -> Option<&'t TensorSpec> {
    tensors
        .iter()
        .find(|tensor| tensor.known && tensor.name == name)
        .map(|tensor| &tensor.spec)
}
