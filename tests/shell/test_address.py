"""HOST:PORT is read once for every process."""

from __future__ import annotations

import pytest
from splitwatt_shell.address import Address, AddressError, parse_address


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [("127.0.0.1:9400", "127.0.0.1", 9400), ("localhost:0", "localhost", 0), ("[::1]:80", "::1", 80), ("h:65535", "h", 65535)],
)
def test_an_address_is_read_and_written_alike(text: str, host: str, port: int) -> None:
    address = parse_address(text)
    assert address == Address(host, port)
    assert str(address) == text


@pytest.mark.parametrize(
    "text", ["", "9400", ":9400", "[]:9400", "host:", "host:65536", "host:x", "host:-1", "host:²", "host:1 "]
)
def test_what_is_no_address_is_one_sentence_that_names_the_option(text: str) -> None:
    with pytest.raises(AddressError, match=r"^listen must be HOST:PORT, such as 127\.0\.0\.1:9400, not "):
        parse_address(text, option="listen")
