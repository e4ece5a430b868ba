# Arguments and paths of tensorrtllm_backend's dockerfile/Dockerfile.triton.trt_llm_backend at r25.12.
ARG BASE_IMAGE=nvcr.io/nvidia/tritonserver:25.12-py3-min

FROM ${BASE_IMAGE} AS final_stage

ARG TENSORRTLLM_VER=1.1.0
WORKDIR /app
COPY tensorrt_llm /tmp/tensorrt_llm
COPY inflight_batcher_llm /tmp/inflight_batcher_llm
RUN cd /tmp/tensorrt_llm && python3 scripts/build_wheel.py --trt_root=/usr/local/tensorrt -i -c --prefix=/app \
 && cp -r /tmp/tensorrt_llm/examples /tmp/tensorrt_llm/triton_backend/* /app/ \
 && cd /tmp/inflight_batcher_llm && bash scripts/build.sh \
 && mkdir /opt/tritonserver/backends/tensorrtllm && cp build/* /opt/tritonserver/backends/tensorrtllm \
 && rm -rf /tmp/tensorrt_llm /tmp/inflight_batcher_llm
