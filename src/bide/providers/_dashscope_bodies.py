"""The creates of DashScope: the model's name decides the endpoint and the names of the fields."""

from __future__ import annotations

import re
from typing import Any

from bide.models import ImageRequest, VideoRequest
from bide.providers import _calls as calls


def path_and_body(request: ImageRequest | VideoRequest) -> tuple[str, dict[str, Any]]:
    """The path and the body of the create call for *request*.

    Raises:
        ValueError: the model does not accept a field of the request, or `extra` repeats one.
    """
    return _video(request) if isinstance(request, VideoRequest) else _image(request)


def _wan_version(model: str) -> tuple[int, int] | None:
    """(2, 6) for "wan2.6-t2v", (0, 0) for a Wan model without a version, None for other families."""
    match = re.match(r"wanx?(?:(\d{1,3})(?:\.(\d{1,3}))?)?(?![a-z0-9])", model.lower())
    return (int(match[1] or 0), int(match[2] or 0)) if match else None


def _video(request: VideoRequest) -> tuple[str, dict[str, Any]]:
    older = re.search(r"kf2v|s2v", request.model.lower()) is not None
    path = f"/services/aigc/{'image2video' if older else 'video-generation'}/video-synthesis"
    parameters = calls.without_none(
        size=calls.format_size(request.size, "*"),
        resolution=request.resolution,
        duration=calls.int_if_whole(request.duration),
        seed=request.seed,
    )
    return path, _body(request, {"prompt": request.prompt, **_frames(request)}, parameters)


def _frames(request: VideoRequest) -> dict[str, Any]:
    """The images of a video request, under the field names of the model's family."""
    model, first, last = request.model.lower(), request.image, request.last_image
    if "s2v" in model:
        if last is not None:
            raise ValueError(f"DashScope's {request.model} accepts no last_image")
        return calls.without_none(image_url=first)
    if "kf2v" not in model and ((version := _wan_version(model)) is None or version >= (2, 7)):
        # Wan 2.7 and later, and all other families, accept one list for all kinds of media.
        frames = (("first_frame", first), ("last_frame", last))
        media = [{"type": kind, "url": url} for kind, url in frames if url is not None]
        return {"media": media} if media else {}
    if "kf2v" in model or last is not None:
        return calls.without_none(first_frame_url=first, last_frame_url=last)
    return calls.without_none(img_url=first)


def _image(request: ImageRequest) -> tuple[str, dict[str, Any]]:
    # The body always has `n`: without it, the first Wan models make and bill four images.
    parameters = {
        "n": request.n,
        **calls.without_none(size=calls.format_size(request.size, "*"), seed=request.seed),
    }
    model, images = request.model.lower(), list(request.images)
    version = _wan_version(model)
    if version is not None and version >= (2, 6):
        content = [{"text": request.prompt}, *({"image": url} for url in images)]
        given: dict[str, Any] = {"messages": [{"role": "user", "content": content}]}
        return "/services/aigc/image-generation/generation", _body(request, given, parameters)
    given = {"prompt": request.prompt}
    if "imageedit" in model:
        if len(images) > 1:
            raise ValueError(f"DashScope's {request.model} accepts one image, not {len(images)}")
        given |= calls.without_none(base_image_url=images[0] if images else None)
    elif images:
        given["images"] = images
    edits = bool(images) or "imageedit" in model or "i2i" in model
    path = f"/services/aigc/{'image2image' if edits else 'text2image'}/image-synthesis"
    return path, _body(request, given, parameters)


def _body(
    request: ImageRequest | VideoRequest, given: dict[str, Any], parameters: dict[str, Any]
) -> dict[str, Any]:
    extra = dict(request.extra)
    more_input, more_parameters = (extra.pop(name, {}) for name in ("input", "parameters"))
    if not isinstance(more_input, dict) or not isinstance(more_parameters, dict):
        raise ValueError(
            "extra['input'] and extra['parameters'] must be objects: they are merged into those of the body"
        )
    own = calls.field_names(request)
    parameters = calls.merge(parameters, more_parameters, "extra['parameters']", own)
    return {
        "model": request.model,
        "input": calls.merge(given, more_input, "extra['input']", {"prompt"}),
        "parameters": calls.merge(parameters, extra, "extra", own),
    }
