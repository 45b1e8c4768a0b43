#!/usr/bin/env python3
"""Makes tests/engine/reference.json: what diffusers computes with the weights and inputs of the tests.

    python3 -m venv target/reference_wan
    target/reference_wan/bin/pip install torch diffusers==0.42.1 accelerate
    target/reference_wan/bin/python examples/candle_wan/reference.py

Run at the root of the workspace. The weights are what `synthesize` writes, under diffusers' names, so that diffusers
reads them by itself; the inputs are src/sampler.rs's `Noise`, written down here a second time. Nothing else is shared.

diffusers round the angles of the time, up to 1000, to f32, which moves its cosines by up to 3e-5 and hides everything
smaller. WAN's authors compute them in f64; so does this script. All else is diffusers' own, in f32.
"""

import json
import pathlib
import subprocess
import tempfile

import diffusers
import numpy
import torch

HERE = pathlib.Path(__file__).parent
TEXT_TOKENS, TEXT_DIM = 512, 4096
IMAGE_TOKENS, IMAGE_DIM = 257, 1280
# Widths divided by `scale` are 256, two heads.
CASES = [
    {"variant": "wan2.1-t2v-1.3b", "scale": 6, "blocks": 2, "guidance": 4.0, "pixels_per_latent": 8},
    {"variant": "wan2.1-i2v-14b", "scale": 20, "blocks": 2, "guidance": 1.0, "pixels_per_latent": 8},
    {"variant": "wan2.2-i2v-a14b", "scale": 20, "blocks": 1, "guidance": 1.0, "pixels_per_latent": 8},
    {"variant": "wan2.2-ti2v-5b", "scale": 12, "blocks": 1, "guidance": 1.0, "pixels_per_latent": 16},
]
# Latents of 2 by 4 by 6: every axis is another length, in patches too.
# Of results every fifth number is kept: no length of an axis is a multiple of 5, so all channels and places are among them.
EVERY = 5
REQUEST = {"latent_frames": 2, "latent_height": 4, "latent_width": 6, "steps": 3, "shift": 5.0, "text_tokens": 300, "seed": 7}


class Noise:
    """Sums of four uniform numbers out of splitmix64."""

    def __init__(self, seed):
        self.state = numpy.uint64(seed)

    def tensor(self, *shape):
        count = int(numpy.prod(shape))
        with numpy.errstate(over="ignore"):
            steps = numpy.arange(1, count + 1, dtype=numpy.uint64) * numpy.uint64(0x9E3779B97F4A7C15)
            bits = self.state + steps
            self.state = bits[-1]
            bits = (bits ^ (bits >> numpy.uint64(30))) * numpy.uint64(0xBF58476D1CE4E5B9)
            bits = (bits ^ (bits >> numpy.uint64(27))) * numpy.uint64(0x94D049BB133111EB)
            bits = bits ^ (bits >> numpy.uint64(31))
        parts = [(bits >> numpy.uint64(16 * part)) & numpy.uint64(0xFFFF) for part in range(4)]
        numbers = (sum(parts).astype(numpy.float64) - 2 * 65535.0) / 37837.227
        return torch.from_numpy(numbers.astype(numpy.float32)).reshape(shape)


class Time(torch.nn.Module):
    """Cosines and sines of the time, their angles in f64 as WAN's authors have them."""

    def __init__(self, width):
        super().__init__()
        self.half = width // 2

    def forward(self, timesteps):
        places = torch.arange(self.half, dtype=torch.float64) / self.half
        angles = timesteps.double()[:, None] * torch.pow(10000.0, -places)
        return torch.cat([angles.cos(), angles.sin()], dim=-1).float()


def inputs(config, case):
    """Noise, texts, image states and what stands beside the noise, in the order in which they are drawn."""
    size = [REQUEST[f"latent_{axis}"] for axis in ("frames", "height", "width")]
    noise = Noise(REQUEST["seed"])
    latents = noise.tensor(1, config.out_channels, *size)
    texts = 2 if case["guidance"] != 1.0 else 1
    text = torch.zeros(texts, TEXT_TOKENS, TEXT_DIM)
    tokens = REQUEST["text_tokens"]
    text[:, :tokens] = noise.tensor(texts, tokens, TEXT_DIM)
    image = noise.tensor(1, IMAGE_TOKENS, IMAGE_DIM) if config.image_dim else None
    beside = config.in_channels - config.out_channels
    if beside:
        given = noise.tensor(1, beside - 4, *size)
        mask = torch.zeros(1, 4, *size)
        mask[:, :, 0] = 1
        beside = torch.cat([mask, given], dim=1)
    else:
        beside = torch.zeros(1, 0, *size)
    return latents, text, image, beside


def compute(case, folder):
    command = ["cargo", "run", "-q", "--locked", "--example", "synthesize", "--"]
    command += ["--variant", case["variant"], "--encoding", "F32", "--naming", "diffusers"]
    command += ["--scale", str(case["scale"]), "--blocks", str(case["blocks"]), "--out", f"{folder}/"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    model = diffusers.WanTransformer3DModel.from_pretrained(folder, torch_dtype=torch.float32).eval()
    model.condition_embedder.timesteps_proj = Time(model.config.freq_dim)
    latents, texts, image, beside = inputs(model.config, case)

    def velocity(latents, timestep, text):
        taken = torch.cat([latents, beside], dim=1)
        return model(taken, timestep.reshape(1), text[None], image, return_dict=False)[0]

    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=REQUEST["shift"])
    steps = REQUEST["steps"]
    even = numpy.linspace(1, 1 / steps, steps)
    scheduler.set_timesteps(sigmas=even)
    # The same times in f64, for the reason above.
    times = torch.from_numpy(1000 * REQUEST["shift"] * even / (1 + (REQUEST["shift"] - 1) * even))
    assert torch.allclose(times.float(), scheduler.timesteps, rtol=1e-6)
    first = velocity(latents, times[0], texts[0])
    for time, timestep in zip(times, scheduler.timesteps):
        found = velocity(latents, time, texts[0])
        if len(texts) == 2:
            negative = velocity(latents, time, texts[1])
            found = negative + case["guidance"] * (found - negative)
        latents = scheduler.step(found, timestep, latents, return_dict=False)[0]
    # Eight digits tell floats apart well below the tolerance of the test.
    listed = lambda tensor: [float(f"{number:.8g}") for number in tensor.flatten()[::EVERY].tolist()]
    return {**case, "velocity": listed(first), "latents": listed(latents)}


def main():
    torch.manual_seed(0)
    computed = []
    with torch.no_grad():
        for case in CASES:
            with tempfile.TemporaryDirectory() as folder:
                computed.append(compute(case, folder))
    versions = {"diffusers": diffusers.__version__, "torch": torch.__version__.split("+")[0]}
    document = {"made_with": versions, "every": EVERY, "request": REQUEST, "cases": computed}
    text = json.dumps(document)
    # A case a line, so that a difference shows which one it is in.
    text = text.replace('{"variant"', '\n{"variant"')
    (HERE / "tests" / "engine" / "reference.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
