"""A stage as a process: what it talks to, what it loads, and the loop that computes.

Three kinds of thread: the control thread (master, health, forming epochs, on one event loop), the
main thread (load, then the compute loop), and for each epoch one that receives and one that sends.
control_thread and what it imports come without torch: a stage listens before torch is imported.
"""
