//! The transformer computes what diffusers' does: `reference.py` made what is compared with.

use candle_core::Tensor;
use candle_wan::{Engine, Request};
use offload_core::executor::DeviceBudget;
use offload_core::model::PassKind;
use offload_wan::{Checkpoint, Naming, Recipe, SynthesizeSpec};
use serde::Deserialize;

use crate::support;

/// Of the largest difference over the largest number. Sums of some thousand products of f32 in another order differ by
/// about 2e-6, and guidance multiplies that; the smallest thing to get wrong, which of two close functions GELU is, by
/// 2e-5 and more.
const TOLERANCE: f32 = 1e-5;

#[derive(Deserialize)]
struct Reference {
    every: usize,
    request: Numbers,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Numbers {
    latent_frames: usize,
    latent_height: usize,
    latent_width: usize,
    steps: u32,
    shift: f64,
    text_tokens: usize,
    seed: u64,
}

#[derive(Deserialize)]
struct Case {
    variant: String,
    scale: u64,
    blocks: u64,
    guidance: f64,
    pixels_per_latent: usize,
    velocity: Vec<f32>,
    latents: Vec<f32>,
}

fn reference() -> Reference {
    serde_json::from_str(include_str!("reference.json")).expect("reference.py wrote it")
}

fn request(numbers: &Numbers, case: &Case) -> Request {
    Request {
        width: numbers.latent_width * case.pixels_per_latent,
        height: numbers.latent_height * case.pixels_per_latent,
        frames: (numbers.latent_frames - 1) * 4 + 1,
        steps: numbers.steps,
        shift: numbers.shift,
        boundary: None,
        guidance: case.guidance,
        text_tokens: numbers.text_tokens,
        seed: numbers.seed,
    }
}

/// The largest difference over the largest number.
fn difference(found: &Tensor, every: usize, expected: &[f32]) -> f32 {
    let numbers = support::bits(found).into_iter().map(f32::from_bits);
    let found: Vec<f32> = numbers.step_by(every).collect();
    assert_eq!(found.len(), expected.len());
    let largest = expected
        .iter()
        .fold(0.0, |most: f32, number| most.max(number.abs()));
    let pairs = found.iter().zip(expected);
    // A NaN would get lost in a maximum.
    assert!(found.iter().all(|number| number.is_finite()));
    pairs.fold(0.0, |most: f32, (one, other)| most.max((one - other).abs())) / largest
}

#[test]
fn what_is_computed_is_what_diffusers_compute() {
    let reference = reference();
    for case in &reference.cases {
        let folder = tempfile::tempdir().unwrap();
        let spec = support::spec(&case.variant, Recipe::F32, case.scale, case.blocks);
        let path = support::write(&spec, folder.path(), "model.gguf");
        let checkpoint = Checkpoint::open(path).unwrap();
        let request = request(&reference.request, case);
        let mut engine = Engine::new(&checkpoint, None, DeviceBudget::Least, &request).unwrap();

        let (latents, conditions) = request.inputs(engine.config()).unwrap();
        let pass = (PassKind::FULL, Some(PassKind::FULL));
        let velocity = engine
            .velocity(pass, &latents, 1000.0, &conditions)
            .unwrap();
        let velocity = velocity.narrow(0, 0, 1).unwrap();
        let of_velocity = difference(&velocity, reference.every, &case.velocity);

        let latents = engine.sample(|_| ()).unwrap();
        let of_latents = difference(&latents, reference.every, &case.latents);
        println!(
            "{}: velocity {of_velocity:.1e}, latents {of_latents:.1e}",
            case.variant
        );
        assert!(of_velocity < TOLERANCE, "{}: {of_velocity}", case.variant);
        assert!(of_latents < TOLERANCE, "{}: {of_latents}", case.variant);
    }
}

#[test]
fn names_and_containers_make_no_difference() {
    let folder = tempfile::tempdir().unwrap();
    let native = support::spec("wan2.1-i2v-14b", Recipe::F16, 20, 2);
    let diffusers = SynthesizeSpec {
        naming: Naming::Diffusers,
        ..native.clone()
    };
    let files = [
        (&native, "one.gguf"),
        (&native, "two.safetensors"),
        (&diffusers, "three/"),
    ];
    let [gguf, safetensors, shards] = files.map(|(spec, name)| {
        let checkpoint = Checkpoint::open(support::write(spec, folder.path(), name)).unwrap();
        let request = support::request();
        let mut engine = Engine::new(&checkpoint, None, DeviceBudget::Least, &request).unwrap();
        support::bits(&engine.sample(|_| ()).unwrap())
    });
    assert!(gguf == safetensors);
    assert!(gguf == shards);
}
