module orlop/e2e

go 1.26
