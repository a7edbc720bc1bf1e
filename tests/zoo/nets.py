"""The table of real nets: public code, Hugging Face, timm, torchvision; each is built when it is asked for."""

from __future__ import annotations

from zoo.hugging_face import HUGGING_FACE
from zoo.problem import Net
from zoo.vision import VISION
from zoo.written import WRITTEN

NETS: dict[str, Net] = {net.id: net for net in (*WRITTEN, *HUGGING_FACE, *VISION)}
