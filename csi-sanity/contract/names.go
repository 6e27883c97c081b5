package contract

import (
	"fmt"
	"strings"
	"unicode"

	"google.golang.org/grpc/codes"
)

var nameSpecs = []Spec{
	{Name: "names: every legal name makes a volume of its own", run: legalNames},
	{Name: "names: control characters are refused", run: controlCharacters},
	{Name: "names: names that look alike are different names", run: lookAlikes},
}

// legalNames are not for the eyes of a path, a shell, a log or a format string.
func legalNames(t *T) {
	names := []string{
		"/", "//", ".", "..", "../../etc/passwd", "/etc/passwd", "a/../../b", "volumes/../x",
		"new\nline", "tab\there", "carriage\rreturn", " leading", "trailing ", "-rf", "--help", "*", "?", "~",
		"$(reboot)", "`reboot`", "; reboot", "| reboot", "'", `"`, `\`, "%s%n%d", "{}", "null", "true", "NaN",
		"🚢", "🏴‍☠️", "Straße", "日本語", "ἄλογον", "‮right to left", "\u200b", "\ufeff", "\u2028", "\u00a0",
		"pool.json", "volume.json", "data", "incoming", "CON", "con.txt", "a\u0301", "\u00e1",
		strings.Repeat("x", stringLimit), strings.Repeat("🚢", stringLimit/4), strings.Repeat("/", stringLimit),
		strings.Repeat(".", stringLimit), strings.Repeat("../", 42),
	}
	ids := map[string]string{}
	for _, name := range names {
		request := t.request("")
		// The name as it is, so that no prefix takes its teeth. Whoever has it already keeps it.
		request.Name = name
		v, err := t.tryCreate(request)
		if err != nil {
			t.Errorf("the name %q is refused: %v", name, err)
			continue
		}
		if other, taken := ids[v.id]; taken {
			t.Errorf("the names %q and %q make the same volume", name, other)
		}
		ids[v.id] = name
		again := must(t, t.controller.CreateVolume, request)
		if again.GetVolume().GetVolumeId() != v.id {
			t.Errorf("the name %q makes a new volume each time", name)
		}
	}
	if t.has(listVolumes) {
		listed := t.list()
		for id, name := range ids {
			if listed[id] == nil {
				t.Errorf("the volume with the name %q is not listed", name)
			}
		}
	}
}

func controlCharacters(t *T) {
	for c := rune(0); c <= 0x9f; c++ {
		if !unicode.IsControl(c) || c == '\t' || c == '\n' || c == '\r' {
			continue
		}
		request := t.request(fmt.Sprintf("with %q", string(c)))
		request.Name += string(c)
		_, err := t.tryCreate(request)
		t.code(fmt.Sprintf("a name with U+%04X", c), err, codes.InvalidArgument)
	}
}

func lookAlikes(t *T) {
	base := t.driver.name("alike")
	ids := map[string]string{}
	for _, name := range []string{base, base + " ", base + "\n", strings.ToUpper(base), base + "a\u0301", base + "\u00e1", base + "\u200b"} {
		request := t.request("")
		request.Name = name
		v := t.createFrom(request)
		if other, taken := ids[v.id]; taken {
			t.Errorf("the names %q and %q make the same volume", name, other)
		}
		ids[v.id] = name
	}
}
