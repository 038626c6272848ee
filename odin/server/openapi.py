"""The REST interface described as OpenAPI 3.1, for tools and for those who read it."""

from __future__ import annotations

from typing import Any

from odin.server.datatypes import DATATYPES

__all__ = ["describe"]

_MODELS = ("/v2/models/{model}", "/v2/models/{model}/versions/{version}")
_NAMES = {"model": "Name of the model", "version": "Version of the model"}
_ERRORS = {
    400: "The request is not valid",
    401: "The token is missing or wrong",
    404: "There is no such model, or no such version of it",
    413: "The request is larger than the server's limit",
    415: "Compressed in a way that is not understood, or an image, but the model takes tensors",
    429: "Too many requests, or the answer would be late; see Retry-After",
    500: "The model failed, or the server did",
    503: "The model is not ready, or the server is ending",
    504: "The deadline passed before the answer was there",
}


def describe(version: str, *, has_token: bool) -> dict[str, Any]:
    """Return the description.

    Parameters
    ----------
    version
        Of the server.
    has_token
        Whether clients have to send a bearer token.
    """
    always = (401,) if has_token else ()
    paths: dict[str, Any] = {
        "/v2": {"get": _operation("Server metadata", {200: _json("ServerMetadata")}, always)},
        "/v2/health/live": {"get": _open(_operation("Whether the server lives", {200: _json("Live")}))},
        "/v2/health/ready": {
            "get": _open(_operation("Whether models can be asked", {200: _json("Ready"), 503: _json("Ready")}))
        },
        "/v2/models/stats": {"get": _operation("Statistics of all models", {200: _json("Statistics")}, always)},
        "/v2/repository/index": {
            "post": _operation(
                "Models and their states", {200: _json("Index")}, (400, 413, 415, *always), body="IndexRequest"
            )
        },
    }
    for action, summary in (("load", "Load a model, or load it anew"), ("unload", "Unload a model")):
        codes = (400, 404, 413, 415, *always)
        one = _operation(summary, {200: _json("Loaded")}, codes, body="RepositoryRequest")
        paths[f"/v2/repository/models/{{model}}/{action}"] = {"parameters": _names("model"), "post": one}
    for model in _MODELS:
        names = _names(*(name for name in _NAMES if f"{{{name}}}" in model))
        codes = (404, 503, *always)
        readiness = {200: _json("ModelReady"), 503: _json("ModelReady")}
        for end, operation in {
            "": _operation("Model metadata", {200: _json("ModelMetadata")}, codes),
            "/ready": _operation("Whether a model is ready", readiness, (404, *always)),
            "/config": _operation("How a model is configured, as Triton has it", {200: _json("Config")}, codes),
            "/stats": _operation("Statistics of a model", {200: _json("Statistics")}, codes),
        }.items():
            paths[model + end] = {"parameters": names, "get": operation}
        paths[f"{model}/infer"] = {"parameters": names, "post": _infer(always)}
    components: dict[str, Any] = {
        "schemas": _schemas(),
        "responses": {
            f"Error{code}": {"description": told, "content": _content("Error"), **_retry_after(code)}
            for code, told in _ERRORS.items()
        },
    }
    described: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {
            "title": "ODIN",
            "version": version,
            "description": "The Open Inference Protocol (v2) with Triton's extensions: binary tensor data, "
            "classification, model repository, parameters, schedule policy, statistics.",
        },
        "paths": paths,
        "components": components,
    }
    if has_token:
        components["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        described["security"] = [{"token": []}]
    return described


def _operation(
    summary: str, answers: dict[int, Any], errors: tuple[int, ...] = (), *, body: str | None = None
) -> dict[str, Any]:
    responses = {str(code): answer for code, answer in answers.items()}
    for code in sorted(set(errors) - set(answers)):
        responses[str(code)] = {"$ref": f"#/components/responses/Error{code}"}
    operation: dict[str, Any] = {"summary": summary, "responses": responses}
    if body is not None:
        operation["requestBody"] = {"required": False, "content": _content(body)}
    return operation


def _open(operation: dict[str, Any]) -> dict[str, Any]:
    """An operation that needs no token."""
    return {**operation, "security": []}


def _infer(always: tuple[int, ...]) -> dict[str, Any]:
    answer = {
        "description": "The outputs; of an image, its classes",
        "headers": {
            "Inference-Header-Content-Length": {
                "description": "How many bytes are JSON, if binary tensors follow it",
                "schema": {"type": "integer"},
            }
        },
        "content": {
            "application/json": {"schema": {"anyOf": [_ref("InferResponse"), _ref("Classes")]}},
            "application/octet-stream": {},
        },
    }
    codes = (400, 404, 413, 415, 429, 500, 503, 504, *always)
    operation = _operation("Inference", {200: answer}, codes)
    operation["parameters"] = [
        {
            "name": "Inference-Header-Content-Length",
            "in": "header",
            "description": "How many bytes of the body are JSON, if binary tensors follow it; 0: the body is the only "
            "input's bytes",
            "schema": {"type": "integer", "minimum": 0},
        },
        {
            "name": "top",
            "in": "query",
            "description": "How many classes of an image are wanted",
            "schema": {"type": "integer", "minimum": 1, "maximum": 10_000, "default": 5},
        },
        {
            "name": "timeout",
            "in": "query",
            "description": "Deadline of a request whose body is an image, in microseconds; 0: the model's",
            "schema": {"type": "integer", "minimum": 0},
        },
        {
            "name": "priority",
            "in": "query",
            "description": "Priority of a request whose body is an image: it chooses the model's deadline for it",
            "schema": {"type": "integer", "minimum": 0},
        },
        {
            "name": "accuracy",
            "in": "query",
            "description": "Of a family: least accuracy of the variant that is to answer for an image",
            "schema": {"type": "number", "minimum": 0, "maximum": 1},
        },
        {
            "name": "latency",
            "in": "query",
            "description": "Of a family: within how many microseconds it is to answer for an image; 0: any time",
            "schema": {"type": "integer", "minimum": 0},
        },
        {
            "name": "accuracy_budget",
            "in": "query",
            "description": "Of a family: share of accuracy that may be lost for an image by computing less",
            "schema": {"type": "number", "minimum": 0, "exclusiveMaximum": 1},
        },
    ]
    operation["requestBody"] = {
        "required": True,
        "content": {
            "application/json": {"schema": _ref("InferRequest")},
            "application/octet-stream": {},
            "image/jpeg": {},
            "image/png": {},
        },
    }
    return operation


# -- schemas -----------------------------------------------------------------------------------------------------------


def _ref(name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}"}


def _content(name: str) -> dict[str, Any]:
    return {"application/json": {"schema": _ref(name)}}


def _json(name: str) -> dict[str, Any]:
    return {
        "description": "OK" if name not in ("Ready", "ModelReady") else "Read the status",
        "content": _content(name),
    }


def _retry_after(code: int) -> dict[str, Any]:
    if code not in (429, 503):
        return {}
    told = {"description": "Seconds after which another try may succeed", "schema": {"type": "integer"}}
    return {"headers": {"Retry-After": told}}


def _names(*names: str) -> list[dict[str, Any]]:
    return [
        {"name": name, "in": "path", "required": True, "description": _NAMES[name], "schema": {"type": "string"}}
        for name in names
    ]


def _object(required: dict[str, Any], optional: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"type": "object", "properties": {**required, **(optional or {})}, "required": list(required)}


def _list(of: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": of}


def _or_null(schema: dict[str, Any]) -> dict[str, Any]:
    return {"anyOf": [schema, {"type": "null"}]}


def _schemas() -> dict[str, Any]:
    text, flag, whole = {"type": "string"}, {"type": "boolean"}, {"type": "integer"}
    datatype = {"type": "string", "enum": list(DATATYPES)}
    scalar = {"type": ["boolean", "number", "string", "null"]}
    parameters = _or_null({"type": "object", "additionalProperties": scalar})
    sizes = _list({"type": "integer", "minimum": 0})
    known = _object({"name": text, "datatype": datatype, "shape": _list({"type": "integer", "minimum": -1})})
    described = _object({"name": text, "data_type": text, "dims": _list(whole)})
    duration = _object({"count": whole, "ns": whole})
    kinds = ["success", "fail", "queue", "compute_input", "compute_infer", "compute_output", "cache_hit", "cache_miss"]
    statistics = {
        "name": text,
        "version": text,
        "last_inference": {"type": "integer", "description": "Milliseconds since 1970"},
        "inference_count": {"type": "integer", "description": "Samples that were answered"},
        "execution_count": {"type": "integer", "description": "Micro-batches that answered them"},
        "inference_stats": _object(dict.fromkeys(kinds, duration)),
        "response_stats": {"type": "object"},
        "batch_stats": _list(
            _object(
                {
                    "batch_size": whole,
                    "compute_input": duration,
                    "compute_infer": duration,
                    "compute_output": duration,
                }
            )
        ),
        "memory_usage": {"type": "array"},
    }
    return {
        "Error": _object({"error": text}),
        "Live": _object({"live": flag}),
        "Ready": _object({"ready": flag}),
        "ModelReady": _object({"name": text, "ready": flag}),
        "ServerMetadata": _object({"name": text, "version": text, "extensions": _list(text)}),
        "ModelMetadata": _object(
            {"name": text, "versions": _list(text), "platform": text, "inputs": _list(known), "outputs": _list(known)}
        ),
        "Config": _object(
            {
                "name": text,
                "platform": text,
                "backend": text,
                "max_batch_size": whole,
                "input": _list(described),
                "output": _list(described),
                "parameters": {"type": "object", "additionalProperties": _object({"string_value": text})},
            }
        ),
        "Statistics": _object({"model_stats": _list(_object(statistics))}),
        "IndexRequest": _object({}, {"ready": {**flag, "default": False}}),
        "Index": _list(_object({"name": text, "version": text, "state": text, "reason": text})),
        "RepositoryRequest": _object({}, {"parameters": _or_null({"type": "object"})}),
        "Loaded": _object({"name": text}),
        "TensorData": {
            "type": "array",
            "description": "Flat or nested, row by row; null is NaN, and infinities are the strings Infinity and "
            "-Infinity. BYTES are strings, or base64 with the parameter content_type: base64",
            "items": {"anyOf": [scalar, _ref("TensorData")]},
        },
        "InferRequest": _object(
            {
                "inputs": _list(
                    _object(
                        {"name": text, "shape": sizes, "datatype": datatype},
                        {"parameters": parameters, "data": _ref("TensorData")},
                    )
                )
            },
            {
                "id": _or_null(text),
                "parameters": parameters,
                "outputs": _or_null(_list(_object({"name": text}, {"parameters": parameters}))),
            },
        ),
        "InferResponse": _object(
            {
                "model_name": text,
                "model_version": text,
                "outputs": _list(
                    _object(
                        {"name": text, "datatype": datatype, "shape": sizes},
                        {"parameters": parameters, "data": _ref("TensorData")},
                    )
                ),
            },
            {"id": text, "parameters": parameters},
        ),
        "Classes": _object(
            {
                "model_name": text,
                "model_version": text,
                "classes": _list(
                    _object({"index": whole, "probability": {"type": "number"}}, {"label": text}),
                ),
            }
        ),
    }
