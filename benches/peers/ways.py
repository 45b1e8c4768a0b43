"""The work, its floors, and the ways others have to run it. Needs torch; only `Groups` needs diffusers."""

import time

import torch

WIDTH = 5120
INNER = 13824
# Outputs by inputs of a block's matrices.
MATRICES = [*[(WIDTH, WIDTH)] * 8, (INNER, WIDTH), (WIDTH, INNER)]
# How long the device multiplies before something is measured.
WARM_UP_S = 1.0
# Two counts of tokens between which the time of the products is taken as linear.
CROSSING = (8192, 16384)


def numbers(count, seed, device):
    """Seeded bf16 of random sign and digits, with the exponent of 2^-7."""
    generator = torch.Generator(device=device).manual_seed(seed)
    bits = torch.empty(count, dtype=torch.int16, device=device).random_(-0x8000, 0x8000, generator=generator)
    return bits.bitwise_and_(0x807F - 0x10000).bitwise_or_(0x3C00).view(torch.bfloat16)


class Work:
    """The weights on the host and on the device, activations, and what the floors need."""

    def __init__(self, blocks, matrices=MATRICES, device="cuda"):
        self.device = torch.device(device)
        self.shapes = matrices
        self.sizes = [outputs * inputs for outputs, inputs in matrices]
        count = sum(self.sizes)
        self.block_bytes = 2 * count
        pinned = self.device.type == "cuda"
        self.host, self.resident = [], []
        # Made on the device, where that is quick; the host's copy is page-locked, one buffer a block.
        for block in range(blocks):
            memory = numbers(count, block, self.device)
            host = torch.empty(count, dtype=torch.bfloat16, pin_memory=pinned)
            host.copy_(memory)
            self.host.append(host)
            self.resident.append(self.split(memory))
        self.landing = torch.empty(count, dtype=torch.bfloat16, device=self.device)
        # Where products are noted while a way is checked.
        self.noted = None
        if pinned:
            self.upload = torch.cuda.Stream()

    def split(self, memory):
        """The matrices in a block's memory."""
        return [part.view(shape) for part, shape in zip(memory.split(self.sizes), self.shapes)]

    def set_tokens(self, tokens):
        """Makes activations for so many tokens: one memory for all inputs, another for all outputs."""
        widest = max(max(shape) for shape in self.shapes)
        self.operands = None
        x = numbers(widest * tokens, tokens, self.device)
        y = torch.empty_like(x)
        view = lambda memory, width: memory[: tokens * width].view(tokens, width)
        self.operands = [(view(x, inputs), view(y, outputs)) for outputs, inputs in self.shapes]

    def multiply(self, x, weight, y):
        """Submits `y = x @ weight.T`."""
        torch.mm(x, weight.t(), out=y)
        if self.noted is not None:
            self.noted.append(y[0].clone())

    def multiply_block(self, matrices):
        for (x, y), weight in zip(self.operands, matrices):
            self.multiply(x, weight, y)

    def results(self, way):
        """A row of each product in a pass."""
        self.noted = []
        way.run(1)
        results, self.noted = self.noted, None
        return results

    def timed(self, submit, passes):
        """Seconds a pass of what `submit` submits, drained at both ends."""
        torch.cuda.synchronize()
        begin = time.perf_counter()
        submit(passes)
        torch.cuda.synchronize()
        return (time.perf_counter() - begin) / passes

    def submit_uploads(self, blocks, passes):
        with torch.cuda.stream(self.upload):
            for block in blocks * passes:
                self.landing.copy_(self.host[block], non_blocking=True)

    def submit_products(self, passes):
        for matrices in self.resident * passes:
            self.multiply_block(matrices)

    def wire_s(self, blocks, passes):
        """Bare uploads of these blocks, one call each."""
        return self.timed(lambda passes: self.submit_uploads(blocks, passes), passes)

    def compute_s(self, passes):
        """The products alone, everything resident."""
        return self.timed(self.submit_products, passes)

    def warm_up(self):
        """Multiplies until the device is as warm as it will be in what is measured next."""
        begin = time.perf_counter()
        while time.perf_counter() - begin < WARM_UP_S:
            self.compute_s(1)

    def overlap_s(self, blocks, passes):
        """Products and uploads side by side, nothing waiting for anything."""

        def submit(passes):
            # Uploads first: a full queue of products would hold the host.
            self.submit_uploads(blocks, passes)
            self.submit_products(passes)

        return self.timed(submit, passes)

    def crossing(self):
        """Tokens with which the products take as long as the uploads, to a multiple of 128."""
        times = []
        for tokens in CROSSING:
            self.set_tokens(tokens)
            self.compute_s(3)
            times.append(self.compute_s(5))
        blocks = list(range(len(self.host)))
        self.wire_s(blocks, 1)
        slope = (times[1] - times[0]) / (CROSSING[1] - CROSSING[0])
        tokens = CROSSING[0] + (self.wire_s(blocks, 3) - times[0]) / slope
        return max(round(tokens / 128), 1) * 128


class Resident:
    """Nothing moves."""

    def __init__(self, work):
        self.run = work.submit_products
        self.uploads = []
        self.held_bytes = work.block_bytes * len(work.host)

    def host_us_per_visit(self):
        return None


class OneAhead:
    """The next block's upload on a stream of its own while this block is multiplied; memory from torch's allocator.

    Two blocks are on the device. The host never waits: an upload waits for the products with the block whose memory it
    gets, products wait for their upload, both on the device. The last visit of a run uploads nothing.
    """

    held_bytes = 0

    def __init__(self, work):
        self.work = work
        self.uploads = list(range(len(work.host)))
        self.stream = torch.cuda.Stream()
        self.host_s = 0.0

    def start(self, block, free):
        self.stream.wait_event(free)
        with torch.cuda.stream(self.stream):
            memory = self.work.host[block].to(self.work.device, non_blocking=True)
        return memory, self.stream.record_event()

    def run(self, passes):
        compute = torch.cuda.current_stream()
        order = self.uploads * passes
        free = compute.record_event()
        ahead = self.start(order[0], free)
        for block in [*order[1:], None]:
            begin = time.perf_counter()
            # The block before loses its memory here, to the upload that is started now.
            memory, ready = ahead
            matrices = self.work.split(memory)
            if block is not None:
                ahead = self.start(block, free)
            compute.wait_event(ready)
            self.host_s += time.perf_counter() - begin
            self.work.multiply_block(matrices)
            free = compute.record_event()

    def host_us_per_visit(self):
        """Microseconds of the host for moving a block: of one pass, which no queue is too short for."""
        self.host_s = 0.0
        self.work.timed(self.run, 1)
        return self.host_s * 1e6 / len(self.uploads)


class Matrix(torch.nn.Linear):
    """A layer without bias that writes where it is told, so that every way makes the same products."""

    def __init__(self, work, weight):
        outputs, inputs = weight.shape
        super().__init__(inputs, outputs, bias=False, device="meta", dtype=weight.dtype)
        self.weight = torch.nn.Parameter(weight, requires_grad=False)
        self.multiply = work.multiply

    def forward(self, x, y):
        self.multiply(x, self.weight, y)


class Block(torch.nn.Module):
    def __init__(self, work, memory):
        super().__init__()
        self.work = work
        self.matrices = torch.nn.ModuleList(Matrix(work, weight) for weight in work.split(memory))

    def forward(self):
        for (x, y), matrix in zip(self.work.operands, self.matrices):
            matrix(x, y)


class Transformer(torch.nn.Module):
    def __init__(self, work):
        super().__init__()
        # As every real model has parameters beside its blocks. At block level diffusers prefetches only then, and
        # without it computes with blocks that have not arrived.
        self.scale = torch.nn.Parameter(numbers(WIDTH, 0, "cpu"), requires_grad=False)
        self.blocks = torch.nn.ModuleList(Block(work, memory) for memory in work.host)

    def forward(self):
        for block in self.blocks:
            block()


class Groups:
    """diffusers' group offloading. The weights are page-locked already: it makes no copy of its own."""

    held_bytes = 0

    def __init__(self, work, offload_type, record_stream):
        from diffusers.hooks import apply_group_offloading

        self.uploads = list(range(len(work.host)))
        self.model = Transformer(work)
        apply_group_offloading(
            self.model,
            onload_device=work.device,
            offload_device=torch.device("cpu"),
            offload_type=offload_type,
            num_blocks_per_group=1 if offload_type == "block_level" else None,
            use_stream=work.device.type == "cuda",
            record_stream=record_stream,
        )

    def run(self, passes):
        for _ in range(passes):
            self.model()

    def host_us_per_visit(self):
        # It waits for the device in every visit.
        return None


def missing_diffusers():
    """Why group offloading cannot be measured; nothing if it can."""
    # It imports what it needs when it is asked for, and passes on whatever that raises.
    try:
        import accelerate  # noqa: F401 (group offloading calls it without asking)
        from diffusers.hooks import apply_group_offloading  # noqa: F401
    except Exception as error:  # noqa: BLE001
        return f"{type(error).__name__}: {error}"
    return None
