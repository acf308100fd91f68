"""The Hub's licences."""

from lambdaresnet_zoo.conversion.convert import LICENSE
from lambdaresnet_zoo.weights.cards import UNKNOWN_LICENSE
from lambdaresnet_zoo.weights.licenses import LICENSES, doubt, nearest
from lambdaresnet_zoo.weights.published import published_figures


def test_every_identifier_may_be_given():
    assert {"apache-2.0", "openrail++", "other", UNKNOWN_LICENSE} <= LICENSES and len(LICENSES) > 70
    assert not [license for license in LICENSES if not LICENSE.fullmatch(license) or doubt(license)]


def test_those_of_published_weights_are_among_them():
    used = {figure.license for figure in published_figures() if figure.license not in ("", "not stated")}
    assert used and used <= LICENSES


def test_the_nearest_are_named():
    assert nearest("Apache 2.0")[0] == nearest("apache2.0")[0] == "apache-2.0"
    assert "did you mean" in doubt("cc-by-nc-4") and "cc-by-nc-4.0" in doubt("cc-by-nc-4")
    assert "did you mean" not in doubt("nonsense") and "'nonsense'" in doubt("nonsense")
