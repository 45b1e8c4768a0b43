"""What GGML's own reader of GGUF files (PyPI: gguf) says to each file named on standard input.

Writes one line of JSON a file: the tensors as it sees them, or why it refuses. Reads no data.
"""

import json
import signal
import sys
import warnings

from gguf import GGUFReader, GGUFValueType

# It walks arrays element by element, whatever length they claim.
SECONDS = 1.0


def too_long(signum, frame):
    raise TimeoutError("it takes too long")


def original(reader, name):
    """What comfy.gguf.orig_shape says of a tensor: numbers, or [] if it says something else."""
    field = reader.fields.get(f"comfy.gguf.orig_shape.{name}")
    if field is None:
        return None
    if field.types != [GGUFValueType.ARRAY, GGUFValueType.INT32]:
        return []
    return [int(field.parts[part][0]) for part in field.data]


def read(path):
    reader = GGUFReader(path)
    tensors = [
        {
            "name": tensor.name,
            "shape": [int(dim) for dim in reversed(tensor.shape)],
            "id": int(tensor.tensor_type),
            "begin": int(tensor.data_offset),
            "bytes": int(tensor.n_bytes),
            "original": original(reader, tensor.name),
        }
        for tensor in reader.tensors
    ]
    fields = reader.fields.values()

    def values(kind):
        of_kind = [field for field in fields if field.types[-1:] == [kind]]
        return [bytes(field.parts[part]) for field in of_kind for part in field.data]

    # It takes what there is of a string that claims to be longer than the rest of the file.
    cut = any(
        int(field.parts[part - 1][0]) > len(field.parts[part])
        for field in fields
        if field.types[-1:] == [GGUFValueType.STRING]
        for part in field.data
    )
    texts = [text.decode("latin1") for text in values(GGUFValueType.STRING)]
    return {
        "keys": list(reader.fields),
        "texts": texts,
        "cut": cut,
        "bools": [byte for value in values(GGUFValueType.BOOL) for byte in value],
        "alignment": int(reader.alignment),
        "data_offset": int(reader.data_offset),
        "tensors": tensors,
    }


warnings.simplefilter("ignore")
signal.signal(signal.SIGALRM, too_long)
for line in sys.stdin:
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        answer = read(line.rstrip("\n"))
    except Exception as error:
        answer = {"refused": f"{type(error).__name__}: {error}"}
    signal.setitimer(signal.ITIMER_REAL, 0)
    print(json.dumps(answer), flush=True)
