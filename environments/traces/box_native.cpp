// The function for `sys.settrace` of box_events.py, compiled: the same record, byte by byte, in a fraction of the time.
//
// The program that is traced shares the process and is hostile. It reaches what Python reaches: it may call these functions itself with any
// arguments, and code of its own (finalizers, other threads) may run whenever a Python function is called or an object is made that the
// garbage collector knows. So every object that is used across such a moment is held, and what the program can change is read anew after it.
// Only functions that CPython exports are used.
//
// What is rare or not plain is left to Python: `Shown`, `LineTable`, and the names of modules and classes.

#include "native_locals.h"

#include <frameobject.h>

#if PY_VERSION_HEX < 0x030B0000 || PY_VERSION_HEX >= 0x030C0000
#error "the compiled tracer is for Python 3.11"
#endif

namespace {

PyTypeObject tracer_type = {PyVarObject_HEAD_INIT(nullptr, 0)};
PyTypeObject follower_type = {PyVarObject_HEAD_INIT(nullptr, 0)};
PyObject *word_call, *word_line, *word_return, *word_exception, *word_trace_lines;

bool is_word(PyObject* event, PyObject* word) {
    return event == word || (PyUnicode_CheckExact(event) && PyUnicode_Compare(event, word) == 0);
}

bool are_arguments(PyObject* const* arguments, size_t count, PyObject* names) {
    if (PyVectorcall_NARGS(count) == 3 && names == nullptr && PyFrame_Check(arguments[0])) return true;
    PyErr_SetString(PyExc_TypeError, "this is called by the interpreter, with a frame, an event and its value");
    return false;
}

// Ends the trace, which ends the process. Always false.
bool end_trace(Tracer* tracer, const char* status, Ref reason) {
    if (!reason) return false;
    Ref done(PyObject_CallFunction(tracer->end, "sO", status, reason.get()));
    if (done) PyErr_SetString(PyExc_SystemExit, status);
    return false;
}

// ---- events of a frame ----

bool look_at_locals(Follower* self, PyFrameObject* frame) {
    const Line* line = self->line;
    int effect = line != nullptr ? line->effect : 0;
    Py_ssize_t n_stores = line != nullptr ? line->count : 0, n_cells = 0;
    if (self->seen_epoch != self->tracer->epoch) {
        self->seen_epoch = self->tracer->epoch;
        effect = CHANGES;
        n_cells = self->table->n_cells;
    }
    if (n_stores == 0 && n_cells == 0 && (effect == 0 || self->n_changing == 0)) return true;
    Ref values(PyFrame_GetLocals(frame));
    if (!values) return false;
    if (!PyDict_CheckExact(values.get())) return PyErr_SetString(PyExc_TypeError, "a function without locals"), false;
    if (n_stores > 0 && !look_at_bound(self, values.get(), self->table->stores + line->first, n_stores)) return false;
    if (!look_at_bound(self, values.get(), self->table->cells, n_cells)) return false;
    return effect == 0 || look_at_contents(self, values.get(), effect);
}

bool on_line(Follower* self, PyFrameObject* frame) {
    Tracer* tracer = self->tracer;
    const int number = PyFrame_GetLineNumber(frame);
    if (!(number < 0 ? append(tracer, Py_None) : append_number(tracer, number))) return false;
    if (self->is_function) {
        if (!look_at_locals(self, frame)) return false;
    } else {
        Ref values(PyFrame_GetLocals(frame));
        if (!values || !look_at_block(self, values.get())) return false;
    }
    self->line = find_line(self->table, number);
    if (--tracer->ticks > 0) return true;
    Ref ticks(PyObject_CallNoArgs(tracer->flush));
    if (!ticks) return false;
    tracer->ticks = PyLong_AsSsize_t(ticks.get());
    return tracer->ticks >= 0 || !PyErr_Occurred();
}

bool append_value(Tracer* tracer, PyFrameObject* frame, int kind, PyObject* value) {
    const int number = PyFrame_GetLineNumber(frame);
    Ref fresh = shown(tracer, value, nullptr);
    return fresh && append_number(tracer, -4LL * (number < 0 ? 0 : number) - kind) && append(tracer, fresh.get());
}

bool on_return(Follower* self, PyFrameObject* frame, PyObject* value) {
    Tracer* tracer = self->tracer;
    if (!append_value(tracer, frame, 2, value)) return false;
    if (tracer->depth > 0) Py_DECREF(tracer->stack[--tracer->depth]);
    Ref follows_lines(PyObject_GetAttr(reinterpret_cast<PyObject*>(frame), word_trace_lines));
    if (!follows_lines) return false;
    if (follows_lines.get() == Py_True) return true;
    return end_trace(tracer, "untraced", Ref(PyUnicode_FromString("the program turned the tracing of lines off")));
}

bool on_known_event(Follower* self, PyFrameObject* frame, PyObject* event, PyObject* value) {
    Tracer* tracer = self->tracer;
    if (tracer->depth == 0 || tracer->stack[tracer->depth - 1] != self) {
        return end_trace(tracer, "untraced", Ref(PyUnicode_FromString("frames of the program were not followed to their ends")));
    }
    if (is_word(event, word_line)) return on_line(self, frame);
    if (is_word(event, word_return)) return on_return(self, frame, value);
    if (!is_word(event, word_exception) || !PyTuple_CheckExact(value) || PyTuple_GET_SIZE(value) < 2) return true;
    return append_value(tracer, frame, 3, PyTuple_GET_ITEM(value, 1));
}

PyObject* on_event(PyObject* self, PyObject* const* arguments, size_t count, PyObject* names) {
    if (!are_arguments(arguments, count, names)) return nullptr;
    Ref held = Ref::to(self);  // the frame may let go of it meanwhile
    auto* frame = reinterpret_cast<PyFrameObject*>(arguments[0]);
    return on_known_event(reinterpret_cast<Follower*>(self), frame, arguments[1], arguments[2]) ? held.release() : nullptr;
}

// ---- new frames ----

Ref make_follower(Tracer* tracer, Ref table, bool is_function) {
    const Py_ssize_t size = reinterpret_cast<Table*>(table.get())->n_names;
    auto* self = PyObject_NewVar(Follower, &follower_type, size);
    if (self == nullptr) return Ref();
    Ref made(reinterpret_cast<PyObject*>(self));
    auto* places = reinterpret_cast<PyObject**>(self + 1);
    std::memset(static_cast<void*>(places), 0, sizeof(PyObject*) * 2 * static_cast<std::size_t>(size));
    self->call = on_event;
    self->tracer = reinterpret_cast<Tracer*>(Py_NewRef(tracer));
    self->table = reinterpret_cast<Table*>(table.release());
    self->is_function = is_function;
    self->seen_epoch = tracer->epoch;
    self->line = nullptr;
    self->written = places;
    self->changing = places + size;
    self->n_changing = 0;
    self->order = reinterpret_cast<Py_ssize_t*>(places + 2 * size);
    self->block_written = is_function ? nullptr : PyDict_New();
    self->block_changing = is_function ? nullptr : PyDict_New();
    if (!is_function && (self->block_written == nullptr || self->block_changing == nullptr)) return Ref();
    return made;
}

void free_follower(PyObject* object) {
    auto* self = reinterpret_cast<Follower*>(object);
    for (Py_ssize_t local = 0; local < Py_SIZE(self); local++) {
        Py_XDECREF(self->written[local]);
        Py_XDECREF(self->changing[local]);
    }
    Py_XDECREF(self->block_written);
    Py_XDECREF(self->block_changing);
    Py_DECREF(self->table);
    Py_DECREF(self->tracer);
    PyObject_Free(object);
}

// The function of a frame that begins or goes on; none when it is not followed, or with an error.
Ref follow(Tracer* tracer, PyFrameObject* frame, PyObject* code) {
    if (tracer->included != Py_None && tracer->depth > 0) {
        Ref included(PyObject_CallOneArg(tracer->included, code));
        if (!included || included.get() != Py_True) return Ref();
    }
    if (tracer->depth >= tracer->depth_limit) {
        end_trace(tracer, "depth", Ref(PyUnicode_FromFormat("more than %zd calls in one another", tracer->depth_limit)));
        return Ref();
    }
    Ref table = find_table(code, tracer->describe);
    Ref values(table ? PyFrame_GetLocals(frame) : nullptr);
    if (!values) return Ref();
    const bool is_function = reinterpret_cast<Table*>(table.get())->is_function && PyDict_CheckExact(values.get());
    Ref made = make_follower(tracer, static_cast<Ref&&>(table), is_function);
    if (!made || tracer->depth >= tracer->depth_limit) return Ref();
    auto* self = reinterpret_cast<Follower*>(made.get());
    tracer->stack[tracer->depth++] = reinterpret_cast<Follower*>(Py_NewRef(self));
    const int number = PyFrame_GetLineNumber(frame);
    if (!append_number(tracer, -4LL * (number < 0 ? 0 : number) - 1)) return Ref();
    const bool looked = is_function ? look_at_new(self, values.get()) : look_at_block(self, values.get());
    return looked ? static_cast<Ref&&>(made) : Ref();
}

PyObject* on_call(PyObject* self, PyObject* const* arguments, size_t count, PyObject* names) {
    if (!are_arguments(arguments, count, names)) return nullptr;
    Ref held = Ref::to(self);
    auto* tracer = reinterpret_cast<Tracer*>(self);
    auto* frame = reinterpret_cast<PyFrameObject*>(arguments[0]);
    tracer->epoch++;
    PyCodeObject* code = PyFrame_GetCode(frame);
    Ref code_held(reinterpret_cast<PyObject*>(code));
    if (PyUnicode_Compare(code->co_filename, tracer->file) != 0 || !is_word(arguments[1], word_call)) Py_RETURN_NONE;
    Ref follower = follow(tracer, frame, code_held.get());
    if (!follower && !PyErr_Occurred()) Py_RETURN_NONE;
    return follower.release();
}

// ---- the tracer and the module ----

void free_tracer(PyObject* object) {
    auto* tracer = reinterpret_cast<Tracer*>(object);
    for (Py_ssize_t k = 0; k < tracer->depth; k++) Py_DECREF(tracer->stack[k]);
    PyMem_Free(tracer->stack);
    PyMem_Free(tracer->form);
    for (PyObject** place = &tracer->parts; place <= &tracer->classes; place++) Py_XDECREF(*place);  // they lie side by side
    PyObject_Free(object);
}

PyObject* make_tracer(PyObject*, PyObject* arguments) {
    auto* tracer = PyObject_New(Tracer, &tracer_type);
    if (tracer == nullptr) return nullptr;
    Ref made(reinterpret_cast<PyObject*>(tracer));
    std::memset(static_cast<void*>(&tracer->call), 0, sizeof(Tracer) - offsetof(Tracer, call));
    const bool parsed = PyArg_ParseTuple(
        arguments, "O!OOOOOOOOUOnnnnn", &PyList_Type, &tracer->parts, &tracer->flush, &tracer->end, &tracer->included, &tracer->describe,
        &tracer->value, &tracer->known_class, &tracer->values, &tracer->look_at_block, &tracer->file, &tracer->missing, &tracer->depth_limit,
        &tracer->ticks, &tracer->chars, &tracer->max_items, &tracer->max_form);
    for (PyObject** place = &tracer->parts; place <= &tracer->missing; place++) Py_XINCREF(*place);  // they were borrowed
    if (!parsed) return nullptr;
    if (tracer->depth_limit < 1 || tracer->depth_limit > 1 << 20 || tracer->max_form < 1 || tracer->max_form > 1 << 24) {
        return PyErr_SetString(PyExc_ValueError, "no such limit"), nullptr;
    }
    tracer->call = on_call;
    tracer->classes = PyDict_New();
    tracer->stack = PyMem_New(Follower*, tracer->depth_limit);
    tracer->form = PyMem_New(unsigned char, tracer->max_form);
    if (tracer->classes == nullptr || tracer->stack == nullptr || tracer->form == nullptr) return PyErr_NoMemory();
    return made.release();
}

bool make_type(PyTypeObject* type, const char* name, Py_ssize_t size, destructor free, Py_ssize_t call) {
    type->tp_name = name;
    type->tp_basicsize = size;
    type->tp_dealloc = free;
    type->tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION;
    if (call != 0) {
        type->tp_flags |= Py_TPFLAGS_HAVE_VECTORCALL;
        type->tp_vectorcall_offset = call;
        type->tp_call = PyVectorcall_Call;
    }
    return PyType_Ready(type) == 0;
}

bool make_words() {
    struct Word {
        PyObject** place;
        const char* text;
    };
    const Word words[] = {{&word_call, "call"},           {&word_line, "line"},
                          {&word_return, "return"},       {&word_exception, "exception"},
                          {&word_trace_lines, "f_trace_lines"}, {&word_wary, "wary"}};
    for (const Word& word : words) {
        *word.place = PyUnicode_InternFromString(word.text);
        if (*word.place == nullptr) return false;
    }
    return true;
}

PyMethodDef functions[] = {{"make_tracer", make_tracer, METH_VARARGS, "As make_tracer of box_events.py calls it."},
                           {nullptr, nullptr, 0, nullptr}};
PyModuleDef definition = {PyModuleDef_HEAD_INIT, "box_native", nullptr, -1, functions, nullptr, nullptr, nullptr, nullptr};

}  // namespace

PyMODINIT_FUNC PyInit_box_native() {
    follower_type.tp_itemsize = 2 * sizeof(PyObject*) + sizeof(Py_ssize_t);
    const bool made = make_words() && make_type(&table_type, "box_native.Table", sizeof(Table), free_table, 0) &&
                      make_type(&tracer_type, "box_native.Tracer", sizeof(Tracer), free_tracer, offsetof(Tracer, call)) &&
                      make_type(&follower_type, "box_native.Follower", sizeof(Follower), free_follower, offsetof(Follower, call));
    if (!made) return nullptr;
    table_index = _PyEval_RequestCodeExtraIndex(drop_table);
    if (table_index < 0) return PyErr_SetString(PyExc_RuntimeError, "code objects have no room for a table"), nullptr;
    return PyModule_Create(&definition);
}
