"""What two sides must agree on, and nothing that only one side needs.

specs       the file with which every process is started, ports, limits
names       what infra writes on Kubernetes objects and the inference server reads
generation  every generation parameter with its bounds, by surface
api_keys    an API key's entry
signature   how a caller proves that it is of the stack; signed_request: of one whole request
models      models that both the plan and the runner know by name, and their files
quantization  how files hold quantized weights, and whether they can
hub         where the model hub is, and what its refusals mean
web_model   which files are asked for below an address, and what stands for their content
memory      what a rank's share of a model takes of its memory; host_memory: what a host has
faults      path, value, rule: the one wording of a mistake

Imports nothing of ours and, of others', pydantic. Everything may import it.
"""
