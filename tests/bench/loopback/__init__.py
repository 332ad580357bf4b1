"""A phone on this host that speaks adb's protocol, for tests of the adb device."""
