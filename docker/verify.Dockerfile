# Converts and verifies: torch, transformers, llama.cpp and onnxruntime for the processor. Build from the root:
#   docker build -f docker/verify.Dockerfile -t gptoss-convert-verify .
#   docker run --rm -u "$(id -u):$(id -g)" -v "$PWD:/work" gptoss-convert-verify verify gpt-oss-20b gpt-oss-20b.gguf
FROM python:3.11-slim AS wheel
COPY . /src
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels /src

FROM python:3.11-slim
COPY constraints.txt /tmp/constraints.txt
# torch from PyPI brings gigabytes of CUDA; this index has the build for the processor.
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels \
    wheel=$(ls /wheels/*.whl) \
    && pip install --no-cache-dir -c /tmp/constraints.txt --extra-index-url https://download.pytorch.org/whl/cpu \
        "gptoss-convert[hub,verify,onnx,release] @ file://$wheel" \
    && useradd --create-home --uid 1000 converter
ENV HF_HOME=/cache/huggingface PYTHONUNBUFFERED=1
RUN mkdir -p /cache /work && chown converter /cache /work
VOLUME /cache
WORKDIR /work
USER converter
ENTRYPOINT ["gptoss-convert"]
