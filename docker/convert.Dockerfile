# Converts: no torch, no runtime. Build from the root of the repository:
#   docker build -f docker/convert.Dockerfile -t gptoss-convert .
#   docker run --rm -u "$(id -u):$(id -g)" -v "$PWD:/work" gptoss-convert to-gguf gpt-oss-20b -o gpt-oss-20b.gguf
FROM python:3.11-slim AS wheel
COPY . /src
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels /src

FROM python:3.11-slim
COPY constraints.txt /tmp/constraints.txt
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels \
    wheel=$(ls /wheels/*.whl) \
    && pip install --no-cache-dir -c /tmp/constraints.txt "gptoss-convert[hub,onnx,release] @ file://$wheel" \
    && useradd --create-home --uid 1000 converter
ENV HF_HOME=/cache/huggingface PYTHONUNBUFFERED=1
RUN mkdir -p /cache /work && chown converter /cache /work
VOLUME /cache
WORKDIR /work
USER converter
ENTRYPOINT ["gptoss-convert"]
