package deploy

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

var update = flag.Bool("update", false, "write the table of values into deploy/README.md")

// The table of values in deploy/README.md is that of values.yaml: every value, its default and its comment.
func TestTheTableOfValuesIsTheChartS(t *testing.T) {
	var document yaml.Node
	if err := yaml.Unmarshal(read(t, filepath.Join(chart(t), "values.yaml")), &document); err != nil {
		t.Fatal(err)
	}
	table := "\n| value | default | meaning |\n|---|---|---|\n" + strings.Join(rows(t, "", document.Content[0]), "")
	file := filepath.Join(root, "deploy/README.md")
	text := string(read(t, file))
	before, rest, found := strings.Cut(text, "\n## Values\n")
	_, after, hasNext := strings.Cut(rest, "\n## ")
	if !found || !hasNext {
		t.Fatal("deploy/README.md has no section Values with another one behind it")
	}
	wanted := before + "\n## Values\n" + table + "\n## " + after
	if text == wanted {
		return
	}
	if !*update {
		t.Fatal("the table of values in deploy/README.md is not that of values.yaml: run make manifests, and commit it")
	}
	if err := os.WriteFile(file, []byte(wanted), 0o644); err != nil {
		t.Fatal(err)
	}
}

// rows has a row for each value with a comment; one without must be a part of a value with a comment.
func rows(t *testing.T, path string, mapping *yaml.Node) []string {
	t.Helper()
	var table []string
	for i := 0; i < len(mapping.Content); i += 2 {
		key, value := mapping.Content[i], mapping.Content[i+1]
		name := path + key.Value
		comment := strings.Join(strings.Fields(strings.ReplaceAll(key.HeadComment, "#\u0020", "")), " ")
		switch {
		case comment != "":
			table = append(table, fmt.Sprintf("| `%s` | %s | %s |\n", name, shown(t, value), comment))
		case value.Kind == yaml.MappingNode:
			table = append(table, rows(t, name+".", value)...)
		default:
			t.Errorf("values.yaml does not say what %s is for", name)
		}
	}
	return table
}

// shown is a default as it stands in the table: what is long is only in values.yaml.
func shown(t *testing.T, value *yaml.Node) string {
	t.Helper()
	var decoded any
	if err := value.Decode(&decoded); err != nil {
		t.Fatal(err)
	}
	if decoded == "" {
		return ""
	}
	text := fmt.Sprint(decoded)
	if value.Kind != yaml.ScalarNode {
		encoded, err := json.Marshal(decoded)
		if err != nil {
			t.Fatal(err)
		}
		text = string(encoded)
	}
	if len(text) > 80 {
		return "see `values.yaml`"
	}
	return "`" + text + "`"
}
