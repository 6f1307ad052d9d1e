"""The runner: a language model split over ranks, served by a master and one stage for each rank.

Processes. `python -m runner.master` has the API, the text, the scheduler and the ledger of open
requests, and never imports torch. `python -m runner.stage --rank N` has torch, the layers of its
rank and their KV cache. Both read one spec file. Who wants the core in one sitting reads steps,
master/engine (requests, scheduler, engine), stage/model (stage_model, attention,
packed_batch, kv_pool),
stage/process/compute_loop and stage/sampling/sampler.

Words. A *rank* is a place in the pipeline, a *stage* the process and the layers that hold it. A
*step* is what moves once through all stages: *segments* of requests (a chunk of a prompt, or one
token that decodes) with their token ids. A *micro-batch* is the requests that decode in one step;
several are on their way at once. An *epoch* is one life of the *group* of all ranks.

The life of a request. `master/api` checks a body, `master/text` makes token ids of it, the engine
enters it in its ledger. The scheduler admits it when its worst case fits the smallest rank's KV
cache, sends its prompt in chunks, then one token a step. Each stage runs its layers over the step
and hands the hidden states on; the last one samples and returns one token for each segment that
asks for it, and every stage's time. The engine delivers the token, the text goes out piece by
piece. A client that leaves closes the generator: its KV is released with the next step.

The life of an epoch. Stages dial the master and join; they load the commit that it names. When all
are loaded the master says `form`: each stage drops its KV cache, dials the next rank (the last one
the master) and says `formed`. A probe goes round, and the group is ready. A link that breaks, a
peer that is silent for 3 s, a step that is overdue or raises: the epoch is lost, every link is
shut, the next one forms with the weights that are still loaded, and every open request is sent
again, prompt and emitted ids. After three epochs in a row without a token of progress the next
try waits, 10 s to 300 s. What was being computed in two lost epochs in a row is tried alone, and
ended when that is lost too. A fault of the master's own ends its process, a broken device a
stage's. A step that finds too little memory is computed once more first.

Who may import whom: master | stage -> transport | models -> steps -> sampling_parameters -> errors
(pyproject.toml holds it).
"""
