# Stages and arguments of tensorrtllm_backend's dockerfile/Dockerfile.trt_llm_backend at v0.12.0.
ARG BASE_IMAGE=nvcr.io/nvidia/tritonserver
ARG BASE_TAG=24.07-py3

FROM ${BASE_IMAGE}:${BASE_TAG} as base

COPY requirements.txt /tmp/
COPY tensorrt_llm/docker/common/check_requirements.py /tmp/
RUN python3 /tmp/check_requirements.py /tmp/requirements.txt

FROM base as dev

COPY tensorrt_llm/docker/common/install_tensorrt.sh /tmp/
RUN bash /tmp/install_tensorrt.sh && rm /tmp/install_tensorrt.sh
ARG TORCH_INSTALL_TYPE="pypi"
COPY tensorrt_llm/docker/common/install_pytorch.sh install_pytorch.sh
RUN bash install_pytorch.sh $TORCH_INSTALL_TYPE && rm install_pytorch.sh

FROM dev as trt_llm_builder

WORKDIR /app
COPY tensorrt_llm tensorrt_llm
RUN cd tensorrt_llm && python3 scripts/build_wheel.py --trt_root=/usr/local/tensorrt -i -c && cd ..

FROM trt_llm_builder as trt_llm_backend_builder

WORKDIR /app/
COPY inflight_batcher_llm inflight_batcher_llm
RUN cd inflight_batcher_llm && bash scripts/build.sh && cd ..

FROM trt_llm_backend_builder as final

# Install TensorRT-LLM backend
RUN mkdir /opt/tritonserver/backends/tensorrtllm
RUN cp /app/inflight_batcher_llm/build/* /opt/tritonserver/backends/tensorrtllm
