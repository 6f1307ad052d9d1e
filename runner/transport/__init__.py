"""Bytes between the processes of a group: the handshake, control messages, frames of data links.

Master and stages both speak it, so there is no torch here and a tensor is a block of bytes. What
is received is checked against the receiver's own limits before anything is allocated for it. New
kinds of link or message go here; when something is sent, and what follows from it, does not.
"""
