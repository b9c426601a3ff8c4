package project

import (
	"reflect"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// What the OpenAPI document says of an input is what the domain holds it to.
func TestTheTagsSayWhatTheChecksHold(t *testing.T) {
	longest := map[string]int{"name": maxTitle, "title": maxTitle, "description": maxText, "body": maxText, "assignee": maxAssignee}
	statuses := strings.ReplaceAll(list(Statuses), ", ", ",")
	inputs := []any{NewProject{}, ProjectChange{}, NewTask{}, TaskChange{}, NewComment{}, CommentChange{}, NewLabel{}, LabelChange{}, Task{}}
	for _, in := range inputs {
		typ := reflect.TypeOf(in)
		isInput := typ != reflect.TypeFor[Task]()
		isLabel := strings.HasSuffix(typ.Name(), "Label") || strings.HasPrefix(typ.Name(), "Label")
		for i := range typ.NumField() {
			f := typ.Field(i)
			name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
			want, tag := "", f.Tag.Get("maxLength")
			if most, ok := longest[name]; ok && isInput {
				want = strconv.Itoa(most)
				if isLabel {
					want = strconv.Itoa(maxLabel)
				}
			}
			require.Equal(t, want, tag, "%s.%s", typ.Name(), f.Name)
			switch name {
			case "status":
				require.Equal(t, statuses, f.Tag.Get("enum"))
			case "priority":
				require.Equal(t, strconv.Itoa(maxPriority), f.Tag.Get("maximum"))
			case "labels":
				if isInput {
					require.Equal(t, strconv.Itoa(maxLabels), f.Tag.Get("maxItems"))
				}
			}
		}
	}
}

func TestAMergePatchTellsNullFromAbsent(t *testing.T) {
	var c TaskChange
	require.NoError(t, c.UnmarshalJSON([]byte(`{"title":"null","assignee":null,"labels":null,"priority":0}`)))
	require.Equal(t, Fields{"assignee", "labels"}, c.Clear)
	require.Equal(t, "null", *c.Title)
	require.Equal(t, 0, *c.Priority)
	require.Nil(t, c.Status)
	require.NoError(t, c.check())
	require.NoError(t, c.UnmarshalJSON([]byte(`{"title":null}`)))
	require.ErrorContains(t, c.check(), "title must not be null")
}
