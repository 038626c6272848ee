#!/usr/bin/env bash
# Tensors of uint16, uint32, uint64, float8 and complex32 can be pickled, but not unpickled.
#
# pickle.dumps() of such a tensor works, so that queues, multiprocessing and Ray take it; the process that gets it fails
# in pickle.loads() with an AttributeError about UntypedStorage, far from the cause. torch.save and torch.load carry the
# same tensors, and the older types pass both ways. Remedy: send the bytes, tensor.view(torch.uint8).numpy(), with the
# dtype's name and the shape, or use torch.save.
set -euo pipefail
TORCH=2.13.0
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "torch==$TORCH" numpy==2.3.5
cat >"$folder/program.py" <<'PROGRAM'
import io, pickle, sys, warnings
import torch

warnings.simplefilter("ignore")
print("torch", torch.__version__)
kinds = {"float32": True, "bfloat16": True, "uint8": True, "uint16": False, "uint32": False, "uint64": False,
         "float8_e4m3fn": False, "float8_e5m2": False, "complex32": False}
as_described = True
for name, comes_back in kinds.items():
    tensor = torch.zeros(3).to(getattr(torch, name))
    data = pickle.dumps(tensor)
    try:
        pickle.loads(data)
        seen = "ok"
    except Exception as error:
        seen = f"{type(error).__name__}: {error}"
    file = io.BytesIO()
    torch.save(tensor, file)
    file.seek(0)
    same = torch.load(file, weights_only=True).dtype == tensor.dtype
    print(f"{name}: pickle.dumps ok; pickle.loads {seen}; torch.save and torch.load {'ok' if same else 'differ'}")
    as_described = as_described and same and (seen == "ok") == comes_back and ("UntypedStorage" in seen) != comes_back
sys.exit(not as_described)
PROGRAM
if (cd "$folder" && venv/bin/python program.py); then echo "As described."; else echo "No longer so."; exit 1; fi
