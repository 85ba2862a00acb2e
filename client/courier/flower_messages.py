"""The Flower messages that a site reads and writes."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flwr.app import Error, Message, RecordDict

from client.flower import (
    MessageHeader,
    ObjectTree,
    get_all_nested_objects,
    get_object_tree,
    inflate_object_from_contents,
    iterate_object_tree,
    message_from_proto,
    message_to_proto,
)
from common.errors import ProtocolError
from common.protocol.codec import Answer, from_record, to_record
from common.protocol.messages import Failure

MOST_OBJECTS = 16
"""Maximum number of objects in a message; ours have three."""


@dataclass(frozen=True)
class Arrival:
    """A message announced by Flower, whose content is yet to be fetched.

    Attributes
    ----------
    header
        Serialised header, as received.
    tree
        Tree of the message's objects.
    """

    header: bytes
    tree: ObjectTree

    @property
    def message(self) -> str:
        """Flower's message ID."""
        return identity_of(self.header)

    @property
    def run(self) -> int:
        """Flower's run ID."""
        return int(MessageHeader.FromString(self.header).metadata.run_id)

    def objects(self) -> list[str]:
        """Return the IDs of all its objects.

        Raises
        ------
        ProtocolError
            If there are more than ``MOST_OBJECTS``.
        """
        found = []
        for item in iterate_object_tree(self.tree):
            found.append(str(item.object_id))
            if len(found) > MOST_OBJECTS:
                raise ProtocolError(f"a Flower message with more than {MOST_OBJECTS} objects")
        return found

    def text(self, contents: Mapping[str, bytes]) -> str:
        """Return the Fedvox message inside as JSON, not validated.

        Raises
        ------
        ProtocolError
            If there is none.
        """
        try:
            message = inflate_object_from_contents(str(self.tree.object_id), dict(contents))
        except Exception as error:  # Flower's own code, run on untrusted bytes
            raise ProtocolError(f"a Flower message that cannot be read ({type(error).__name__})") from None
        if not isinstance(message, Message) or not message.has_content():
            raise ProtocolError("a Flower message without content")
        return from_record(message.content)


@dataclass(frozen=True)
class PackedReply:
    """A reply as announced to Flower, identical each time: SuperLink rejects a second, different one.

    Attributes
    ----------
    message
        ID of the message that it answers.
    text
        The answer as JSON.
    header, tree, objects
        What is sent to Flower.
    """

    message: str
    text: str
    header: bytes
    tree: bytes
    objects: dict[str, bytes]

    @property
    def run(self) -> int:
        """Flower's run ID."""
        return int(MessageHeader.FromString(self.header).metadata.run_id)

    def as_values(self) -> dict[str, Any]:
        """Return the reply as JSON values for storage."""
        return {
            "message": self.message,
            "text": self.text,
            "header": _encode(self.header),
            "tree": _encode(self.tree),
            "objects": {name: _encode(value) for name, value in self.objects.items()},
        }

    @classmethod
    def from_values(cls, content: Mapping[str, Any]) -> PackedReply:
        """Read a stored reply.

        Raises
        ------
        ValueError
            If it is damaged.
        """
        try:
            objects = {str(name): base64.b64decode(value) for name, value in content["objects"].items()}
            header, tree = base64.b64decode(content["header"]), base64.b64decode(content["tree"])
            return cls(str(content["message"]), str(content["text"]), header, tree, objects)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError("a damaged reply") from error


def identity_of(header: bytes) -> str:
    """Return Flower's message ID."""
    return str(MessageHeader.FromString(header).metadata.message_id)


def pack_reply(header: bytes, answer: Answer, text: str) -> PackedReply:
    """Return the reply to a message: a Flower error for a failure, else a message with the text as content.

    Parameters
    ----------
    header
        Header of the message to reply to.
    answer, text
        The same answer, parsed and as it will be sent.
    """
    question = message_from_proto(MessageHeader.FromString(header))
    if isinstance(answer, Failure):
        reply = Message(Error(int(answer.code), answer.reason), reply_to=question)
    else:
        reply = Message(to_record(text), reply_to=question)
    announced = message_to_proto(reply)
    announced.metadata.message_id = reply.object_id
    if reply.has_content():
        # The announcement has no content, which follows as objects.
        announced.content.CopyFrom(message_to_proto(Message(RecordDict(), reply_to=question)).content)
    objects = {name: item.deflate() for name, item in get_all_nested_objects(reply).items()}
    tree = get_object_tree(reply).SerializeToString(deterministic=True)
    return PackedReply(
        question.metadata.message_id, text, announced.SerializeToString(deterministic=True), tree, objects
    )


def _encode(content: bytes) -> str:
    return base64.b64encode(content).decode()
