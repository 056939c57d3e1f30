"""Three tenths of the houses with a price are hidden."""

from environments.tasks.folders import archives, splits

COLUMNS = ["Id", "MSSubClass", "MSZoning", "LotArea", "OverallQual", "YearBuilt", "GrLivArea"]


def prepare(raw, public, private, seed):
    with archives.open_archive(raw, "home-data-for-ml-course.zip") as archive:
        # Cells stay as they are: NA is a category in some columns.
        table = archive.table("train.csv", COLUMNS, numbers=["SalePrice"], keep_default_na=False)
        (public / "data_description.txt").write_bytes(archive.read("data_description.txt"))
    splits.write(*splits.split(table, 0.3, seed), ["SalePrice"], public, private, "Id")
