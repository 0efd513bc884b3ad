"""A TensorFlow Lite file, given by its path: pictures or sound in, told from its input's shape."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tagreel.decoding import Sound
from tagreel.encoders._graph import Colours, Fit, Options, chosen, front, vector
from tagreel.encoders._identity import identity
from tagreel.encoders._inputs import check
from tagreel.encoders._needs import need
from tagreel.encoders._weights import hash_of_files, read
from tagreel.errors import DataError, RecipeError


class TFLite:
    """Pictures (n, H, W, 3) or sound (n, samples) to what the file makes of each, (n, D).

    A network in 8 bits takes a picture's bytes as they are; one in floats (x / 255 - mean) / std, by default
    from -1 to 1, as TensorFlow's image networks do. What comes out in 8 bits is scaled back.
    `output` names the tensor to take, any of the network's, where its output is not the embedding: for
    YAMNet `yamnet_frames/global_average_pooling2d/Mean`, 1,024 numbers. All others are what `Options` in
    `tagreel.encoders._graph` says.
    """

    kind = "tflite"
    expects = "a TensorFlow Lite file, tflite:mobilenet.tflite"

    def __init__(
        self,
        what: str,
        *,
        output: str | None = None,
        size: int | None = None,
        fit: Fit | None = None,
        mean: Colours | None = None,
        std: Colours | None = None,
        rate: int | None = None,
        seconds: float | None = None,
    ) -> None:
        options = Options(size=size, fit=fit, mean=mean, std=std, rate=rate, seconds=seconds)
        self.what = what
        self.options = {"output": output, **vars(options)}
        content = read(what)
        self.weights = hash_of_files(content)
        network = self._opened(content)
        inputs = network.get_input_details()
        if len(inputs) != 1:
            raise DataError(f"has {len(inputs)} inputs; expected one, pictures or sound", path=what)
        shape = [None if length < 0 else int(length) for length in inputs[0]["shape_signature"]]
        half = (0.5, 0.5, 0.5)
        self.front = front(shape, np.dtype(inputs[0]["dtype"]), options, mean=half, std=half, path=what)
        self.wants = self.front.wants
        self.stream = "audio" if isinstance(self.wants, Sound) else "rgb"
        self.network = self._with_output(output, network, content)
        self.input = self.network.get_input_details()[0]["index"]
        with self._errors_in_one_line("cannot take one second at a time"):
            self.network.resize_tensor_input(self.input, self.front.shape)
            self.network.allocate_tensors()
        self.output = self.network.get_output_details()[0]
        self.out_dim = len(self._run(np.zeros(self.front.shape, self.front.dtype)))

    def __call__(self, inputs: NDArray[Any]) -> NDArray[np.float32]:
        """Encode pictures or windows of sound; raises `ValueError` for any other input."""
        check(inputs, self.wants)
        found = np.empty((len(inputs), self.out_dim), np.float32)
        for index, row in enumerate(inputs):
            found[index] = self._run(self.front(row))
        return found

    def identity(self) -> dict[str, Any]:
        """What determines the features."""
        return identity(
            self.kind,
            self.what,
            wants=self.wants,
            out_dim=self.out_dim,
            options=self.options,
            weights=self.weights,
            preparation=self.front.preparation,
            packages=("ai-edge-litert",),
        )

    def _run(self, values: NDArray[Any]) -> NDArray[np.float32]:
        with self._errors_in_one_line("cannot be run"):
            self.network.set_tensor(self.input, values)
            self.network.invoke()
            found = self.network.get_tensor(self.output["index"])
        scale, zero = self.output["quantization"]
        if found.dtype.kind in "iu" and scale:
            found = (found.astype(np.float32) - zero) * np.float32(scale)
        return vector(found, self.output["name"], path=self.what)

    def _opened(self, content: bytes) -> Any:
        interpreter = need("ai_edge_litert.interpreter", extra=self.kind)
        with self._errors_in_one_line("is not a whole TensorFlow Lite file"):
            return interpreter.Interpreter(model_content=content, num_threads=torch.get_num_threads())

    @contextmanager
    def _errors_in_one_line(self, what: str) -> Iterator[None]:
        try:
            yield
        except (RuntimeError, ValueError) as error:
            raise DataError(f"{what}: {' '.join(str(error).split())}", path=self.what) from error

    def _with_output(self, name: str | None, network: Any, content: bytes) -> Any:
        """The network, opened so that the tensor of that name is what it gives."""
        outputs = [tensor["name"] for tensor in network.get_output_details()]
        tensors = network.get_tensor_details()
        name = chosen(name, outputs, [tensor["name"] for tensor in tensors])
        if outputs == [name]:
            return network
        found = [tensor["index"] for tensor in tensors if tensor["name"] == name]
        if len(found) > 1:
            raise RecipeError(f"output={name}: {len(found)} tensors of the file have that name")
        # The interpreter gives an inner tensor too, for debugging: it then keeps them all.
        schema = need("ai_edge_litert.schema_py_generated", extra=self.kind)
        builder = need("flatbuffers", extra=self.kind).Builder(len(content))
        model = schema.ModelT.InitFromPackedBuf(content, 0)
        model.subgraphs[0].outputs = np.array(found, np.int32)
        model.signatureDefs = None
        builder.Finish(model.Pack(builder), b"TFL3")
        return self._opened(bytes(builder.Output()))
