"""timm's image classifiers and published weights (optional: `pip install agrekd_ray[timm]`)."""

from __future__ import annotations

from typing import Any

from torch import nn

from agrekd_ray.errors import AgrekdError
from agrekd_ray.models.classifier import first_line, last_linear
from agrekd_ray.models.family import Parts
from agrekd_ray.models.hub import missing_extra, not_there, offline_errors
from agrekd_ray.models.model import PRETRAINED, Model, Shape, is_file


class Timm:
    """See `Family`."""

    prefix = "timm/"

    def names(self) -> list[str]:
        """See `Family.names`; none where timm is not installed."""
        try:
            import timm
        except ImportError:
            return []
        return timm.list_models()

    def identified(self, model: Model) -> Model:
        """See `Family.identified`; published weights get the tag that timm knows them by."""
        if model.weights != PRETRAINED:
            return model
        name = self._tagged(model)
        return model.model_copy(update={"name": self.prefix + name})

    def parts(self, model: Model, shape: Shape, classes: int, *, initial: bool) -> Parts:
        """See `Family.parts`."""
        timm = _timm()
        name = model.name.removeprefix(self.prefix)
        if not timm.is_model(name):
            raise LookupError(model.name)
        if given := sorted({"num_classes", "pretrained", "in_chans"} & set(model.args)):
            raise AgrekdError(
                f"{model.name}: {', '.join(given)} cannot be set here; the data give classes and "
                "channels, and `weights: pretrained` stands beside `args`"
            )
        published = model.weights is not None and not is_file(model.weights)
        if published:
            name = self._tagged(model)
        try:
            network = timm.create_model(
                name,
                pretrained=published and initial,
                num_classes=classes,
                in_chans=shape[0],
                **model.args,
            )
        except NotImplementedError:
            raise
        except offline_errors() as error:
            raise not_there(model.name, "weights", error) from None
        except Exception as error:  # whatever an architecture says of arguments it cannot take
            raise AgrekdError(f"{model.name}: {first_line(error)}") from None
        return Parts(network, _head(network, classes, model.name))

    def _tagged(self, model: Model) -> str:
        """`NAME.TAG` of published weights."""
        name = model.name.removeprefix(self.prefix)
        if model.weights != PRETRAINED:
            raise AgrekdError(
                f"{model.name} has no published weights {model.weights!r}; write `weights: "
                f"{PRETRAINED}` (a tag belongs to the name, like timm/resnet50.a1_in1k), or a file "
                "that ends in .safetensors, .pt or .pth"
            )
        known = _timm().get_pretrained_cfg(name)
        if known is None or not (known.hf_hub_id or known.url):
            raise AgrekdError(f"{model.name}: timm has no published weights of it")
        return f"{known.architecture}.{known.tag}" if known.tag else name


def _timm() -> Any:
    try:
        import timm
    except ImportError as error:
        raise missing_extra("timm", error) from None
    return timm


def _head(network: Any, classes: int, name: str) -> str:
    layer = network.get_classifier()
    paths = [path for path, module in network.named_modules() if module is layer]
    if isinstance(layer, nn.Linear) and paths:
        return paths[0]
    if isinstance(layer, tuple):
        raise AgrekdError(
            f"{name} has {len(layer)} heads, but DFR and shared backbones need one; choose another "
            "architecture"
        )
    return last_linear(network, classes, name)
