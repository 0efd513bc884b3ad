"""An ONNX file, given by its path: pictures or sound in, told from its input's shape."""

from __future__ import annotations

import os
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
from tagreel.errors import DataError

_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_TYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(uint8)": "uint8",
    "tensor(int8)": "int8",
}


class Onnx:
    """Pictures (n, H, W, 3) or sound (n, samples) to what the file makes of each, (n, D).

    The file takes pictures as (1, 3, H, W) or (1, H, W, 3): bytes as they are, or (x / 255 - mean) / std in
    floats, by default with ImageNet's mean and deviation, as networks out of PyTorch do. Sound it takes as
    (1, samples). Weights may lie in files beside it. `output` names the tensor to take, any of the network's,
    where its output is not the embedding. All others are what `Options` in `tagreel.encoders._graph` says.
    """

    kind = "onnx"
    expects = "an ONNX file, onnx:model.onnx"

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
        model = self._parsed(content)
        folder = os.path.dirname(os.path.abspath(what))
        beside = sorted(_files_beside(model))
        self.weights = hash_of_files(content, *(read(os.path.join(folder, name)) for name in beside))
        self.output = self._with_output(output, model)
        self.network = self._opened(model.SerializeToString(), folder)
        inputs = self.network.get_inputs()
        if len(inputs) != 1:
            raise DataError(f"has {len(inputs)} inputs; expected one, pictures or sound", path=what)
        self.input = inputs[0].name
        self.front = front(
            [length if isinstance(length, int) else None for length in inputs[0].shape],
            np.dtype(_TYPES.get(inputs[0].type, "object")),
            options,
            mean=_IMAGENET_MEAN,
            std=_IMAGENET_STD,
            path=what,
        )
        self.wants = self.front.wants
        self.stream = "audio" if isinstance(self.wants, Sound) else "rgb"
        self.out_dim = len(self._run(np.zeros(self.front.shape, self.front.dtype)))

    def __call__(self, inputs: NDArray[Any]) -> NDArray[np.float32]:
        """Encode pictures or windows of sound; raises `ValueError` for any other input."""
        check(inputs, self.wants)
        found = np.empty((len(inputs), self.out_dim), np.float32)
        for index, row in enumerate(inputs):  # matrix products round by the number of rows
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
            packages=("onnxruntime",),
        )

    def _run(self, values: NDArray[Any]) -> NDArray[np.float32]:
        try:
            (found,) = self.network.run([self.output], {self.input: values})
        except Exception as error:  # onnxruntime's errors have no class of their own
            raise DataError(f"cannot be run: {_line(error)}", path=self.what) from error
        return vector(found, self.output, path=self.what)

    def _parsed(self, content: bytes) -> Any:
        onnx = need("onnx", extra=self.kind)
        try:
            model = onnx.load_model_from_string(content)
        except Exception as error:  # protobuf's, whichever of its implementations is there
            raise DataError(f"is not a whole ONNX file: {_line(error)}", path=self.what) from error
        if not model.graph.node:
            raise DataError("is not an ONNX file: it holds no graph", path=self.what)
        return model

    def _opened(self, content: bytes, folder: str) -> Any:
        onnxruntime = need("onnxruntime", extra=self.kind)
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = torch.get_num_threads()
        settings.log_severity_level = 3
        settings.add_session_config_entry("session.model_external_initializers_file_folder_path", folder)
        try:
            return onnxruntime.InferenceSession(content, settings, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's errors have no class of their own
            raise DataError(f"cannot be opened: {_line(error)}", path=self.what) from error

    def _with_output(self, name: str | None, model: Any) -> str:
        """The name of the output to take; an inner tensor is made an output of the model."""
        outputs = [output.name for output in model.graph.output]
        name = chosen(name, outputs, [tensor for node in model.graph.node for tensor in node.output])
        if name not in outputs:
            model.graph.output.add().name = name
        return name


def _files_beside(model: Any) -> set[str]:
    """The files in which a model's weights lie, apart from its own."""
    return {
        entry.value
        for tensor in model.graph.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    }


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
