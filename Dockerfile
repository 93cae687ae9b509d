# The demo in a container: docker build --tag spectran . && docker run --rm spectran
# This image is not built in the project's gate.
FROM python:3.12-slim
RUN apt-get update && apt-get install --yes --no-install-recommends git make && rm -rf /var/lib/apt/lists/*
RUN useradd --create-home spectran
USER spectran
WORKDIR /home/spectran/project
COPY --chown=spectran pyproject.toml constraints.txt README.md LICENSE Makefile ./
RUN make install
COPY --chown=spectran . .
# DVC needs a git repository; the one outside is not copied.
RUN git init --quiet \
 && git add --all \
 && git -c user.name=spectran -c user.email=spectran@localhost commit --quiet --message "The project, as copied" \
 && touch .venv/installed
CMD ["make", "demo"]
