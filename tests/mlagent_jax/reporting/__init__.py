"""A package, so that its tests share `chromium` whatever else is called so."""
