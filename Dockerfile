# One image for coordinators and agents: the command says which. It holds the five packages, and no compiler.
FROM python:3.11-slim AS build
WORKDIR /source
COPY pyproject.toml constraints.txt README.md ./
COPY actors actors
COPY bus bus
COPY coordinator coordinator
COPY agents agents
COPY workflow workflow
RUN pip wheel --no-cache-dir --constraint constraints.txt --wheel-dir /wheels ".[fast]"

FROM python:3.11-slim
COPY --from=build /wheels /wheels
RUN pip install --no-cache-dir --no-index --find-links /wheels "infinity-matrix[fast]" \
    && rm -r /wheels \
    && useradd --uid 10001 --create-home matrix
COPY examples/polyglot/agent_plain.py /opt/infinity-matrix/
USER matrix
WORKDIR /home/matrix
ENV PYTHONUNBUFFERED=1
ENTRYPOINT ["imx"]
CMD ["coordinator"]
